// Command isr-locksrv keeps the lock side of a realm: it makes users and
// parcels, checks the store, and answers clients over SSH. isr-locksrv(8) is
// its page.
//
// Under one of the pilot's script names (isr_acquire_lock, …) it is that
// script.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"isr/contrib/output"
	"isr/store/parcel"
)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// cli is the command line.
type cli struct {
	Root string `help:"Directory of the realm. Default: $$ISR_ROOT, else ROOT of ${conf}, else ${root}." placeholder:"DIR" type:"path"`

	// The groups and their order are those of isr-locksrv(8).
	User struct {
		Add    userAdd    `cmd:"" help:"Add a user, or keys to one."`
		List   userList   `cmd:"" help:"List the users, and what they have."`
		Change userChange `cmd:"" help:"Change a user's quota, groups, consent or comment."`
		Lock   userLock   `cmd:"" help:"Lock a user out."`
		Unlock userUnlock `cmd:"" help:"Let a user in again."`
		Del    userDel    `cmd:"" help:"Remove a user."`
		Key    struct {
			Add  keyAdd  `cmd:"" help:"Add keys to a user."`
			List keyList `cmd:"" help:"List a user's keys, and what they may do."`
			Del  keyDel  `cmd:"" help:"Remove a key of a user."`
		} `cmd:"" help:"What lets a user in."`
		Passwd userPasswd `cmd:"" help:"Give a user a password, or take it away."`
		Export userExport `cmd:"" help:"Write the disks of all parcels of a user, for one who leaves."`
	} `cmd:"" group:"Users:" help:"Who may have parcels."`
	Parcel struct {
		Import parcelImport `cmd:"" help:"Make a parcel from a disk image: raw, qcow2, vmdk, vdi, vhd, vhdx, ova."`
		Create parcelCreate `cmd:"" help:"Make a parcel with an empty disk."`
		List   parcelList   `cmd:"" help:"List parcels, and who holds them."`
		Copy   parcelCopy   `cmd:"" help:"Make a parcel as another is; the content is shared."`
		Rename parcelRename `cmd:"" help:"Give a parcel another name, or owner."`
		Delete parcelDelete `cmd:"" aliases:"del" help:"Remove a parcel and all its versions."`
		Export parcelExport `cmd:"" help:"Write the disk of a parcel to an image file: raw, qcow2, vmdk, vdi, vpc, vhdx."`
		Unlock parcelUnlock `cmd:"" help:"Break the lock of a parcel."`

		History  parcelHistory  `cmd:"" group:"Versions of a parcel:" help:"List the versions of a parcel."`
		Diff     parcelDiff     `cmd:"" group:"Versions of a parcel:" help:"Say how two versions differ."`
		Tag      parcelTag      `cmd:"" group:"Versions of a parcel:" help:"Give a version a name."`
		Untag    parcelUntag    `cmd:"" group:"Versions of a parcel:" help:"Take such a name away."`
		Pin      parcelPin      `cmd:"" group:"Versions of a parcel:" help:"Keep a version for ever."`
		Unpin    parcelUnpin    `cmd:"" group:"Versions of a parcel:" help:"Keep it no longer than others."`
		Comment  parcelComment  `cmd:"" group:"Versions of a parcel:" help:"Say what a version is, or a parcel."`
		Rollback parcelRollback `cmd:"" group:"Versions of a parcel:" help:"Make an old version the newest."`
		Prune    parcelPrune    `cmd:"" group:"Versions of a parcel:" help:"Remove old versions, by rules that say which are kept."`
	} `cmd:"" group:"Parcels:" help:"What there is to check out."`

	Check  checkCommand  `cmd:"" group:"The store:" help:"Verify the store; exit status 0 only if it is sound."`
	Repair repairCommand `cmd:"" group:"The store:" help:"Put back what check finds missing or damaged, from a replica, a hoard or another directory of objects."`
	GC     gcCommand     `cmd:"" group:"The store:" name:"gc" help:"Remove what no version needs."`
	Du     duCommand     `cmd:"" group:"The store:" help:"Say what parcels and users take of the disk."`

	Status statusCommand `cmd:"" group:"What happens:" help:"Say how the realm is doing."`
	Log    logCommand    `cmd:"" group:"What happens:" help:"Print what happened: who took and broke which lock, committed, administered."`
	Usage  usage         `cmd:"" group:"What happens:" help:"Say who used which parcel last, and how much."`
	Hooks  hooksCmd      `cmd:"" group:"What happens:" help:"List the hooks, and what is wrong with them."`

	Harvest harvest `cmd:"" group:"The study:" help:"Gather how the realm is used: the users who agreed to it."`
	Report  report  `cmd:"" group:"The study:" help:"Show what was harvested as a page of HTML."`

	Backup  backups  `cmd:"" group:"Backup:" help:"Copies of the realm elsewhere."`
	Restore restore  `cmd:"" group:"Backup:" help:"Make a realm of a backup, or bring a parcel back from one."`
	Mirror  mirrorTo `cmd:"" group:"Backup:" help:"Keep a copy of the realm that can be served at once."`

	Serve          serve          `cmd:"" group:"Serving:" help:"Answer clients: the built-in SSH server."`
	Shell          shell          `cmd:"" group:"Serving:" help:"Answer one session of sshd: the forced command of a user's key."`
	AuthorizedKeys authorizedKeys `cmd:"" group:"Serving:" help:"Print the keys of users as sshd wants them."`

	Links      links            `cmd:"" group:"Other:" help:"Make the pilot's script names as links to this program."`
	Completion completionScript `cmd:"" group:"Other:" help:"Print what a shell needs to complete command lines: bash, zsh or fish."`
	Version    version          `cmd:"" group:"Other:" help:"Print the version."`
	Help       help             `cmd:"" group:"Other:" help:"Describe the commands, or one."`
	Complete   complete         `cmd:"" hidden:""`
}

// programName is what messages begin with.
const programName = "isr-locksrv"

// endings are the signals that ask the program to end.
var endings = []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}

// untilSignal is a context that ends with the first of them, to let a command
// clean up. A second one ends the program, from the moment the context does:
// whoever saw that the first one was heeded need not send two more.
func untilSignal() (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan os.Signal, 1)
	signal.Notify(first, endings...)
	stop = func() {
		signal.Stop(first)
		cancel()
	}
	go func() {
		select {
		case <-first:
			stop()
		case <-ctx.Done():
		}
	}()
	return ctx, stop
}

// exited carries the status of kong's own exits, such as that of --help.
type exited int

// run is the program: it returns the exit status.
func run(argv []string, stdout, stderr *os.File) (status int) {
	name := filepath.Base(argv[0])
	for i, arg := range argv {
		// A variable that is not set must not mean the working directory.
		if arg == "--root=" || arg == "" && i > 0 && argv[i-1] == "--root" {
			return complain(stderr, name, parcel.NewError(parcel.Usage, "--root: want a directory"))
		}
	}
	root, rest, err := leadingRoot(argv[1:])
	switch {
	case err != nil:
		return complain(stderr, programName, err)
	case strings.HasPrefix(name, scriptPrefix):
		return script(root, append([]string{name}, rest...), stdout, stderr)
	case len(rest) > 0 && strings.HasPrefix(rest[0], scriptPrefix):
		return script(root, rest, stdout, stderr)
	}

	ctx, stop := untilSignal()
	defer stop()
	out := newResults(stdout)
	defer func() {
		if p := recover(); p != nil {
			code, ok := p.(exited)
			if !ok {
				panic(p)
			}
			if status = int(code); out.Err() != nil { // kong's help
				status = (&env{stdout: out, stderr: stderr}).end(nil)
			}
		}
	}()
	// A reader that is gone is an error to tell of, where there is something to
	// tell; else the first word to it would end what is at work.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	c, parser, err := grammar()
	if err != nil {
		return complain(stderr, programName, err)
	}
	parser.Stdout, parser.Stderr = out, stderr
	args := argv[1:]
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	switch {
	case err == nil:
		err = noneEmpty(parsed)
	case out.Err() == nil: // else it is not the command line that is wrong
		err = usageError(err)
	}
	if err != nil {
		return (&env{stdout: out, stderr: stderr}).end(err)
	}
	e := &env{root: c.Root, stdout: out, stderr: stderr, parser: parser}
	parsed.BindTo(ctx, (*context.Context)(nil))
	err = parsed.Run(e)
	if err != nil && ctx.Err() != nil && !errors.As(err, new(status_)) {
		stopped := parcel.NewError(parcel.Interrupted, "interrupted")
		if e := new(parcel.Error); errors.As(err, &e) && e.Kind == parcel.Interrupted {
			stopped.Hint = e.Hint // how to go on
		}
		err = stopped
	}
	return e.end(err)
}

// noneEmpty refuses an empty argument, but for texts that may be taken away:
// where a script's variable is not set, one user's parcels must not become all
// users', nor a key that expires one that does not.
func noneEmpty(line *kong.Context) error {
	for _, p := range line.Path {
		v := p.Positional
		if p.Flag != nil {
			v = p.Flag.Value
		}
		if v == nil || v.Target.Kind() != reflect.String || v.Target.String() != "" || v.Name == "comment" || v.Name == "why" {
			continue
		}
		name := "<" + v.Name + ">"
		if p.Flag != nil {
			name = "--" + v.Name
		}
		return parcel.NewError(parcel.Usage, "%s: is empty", name).WithHint("%s", usageOf(line))
	}
	return nil
}

// grammar is an empty command line, and what reads one into it. Tests have it
// made once for all theirs: it costs more than most commands do.
var grammar = newGrammar

func newGrammar() (*cli, *kong.Kong, error) {
	c := new(cli)
	parser, err := kong.New(c,
		kong.Name(programName),
		kong.Description("Keeps the parcels of Internet Suspend/Resume, and their locks."),
		kong.Vars{"conf": confFile, "root": defaultRoot()},
		kong.Exit(func(code int) { panic(exited(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.NamedMapper("path", kong.MapperFunc(decodePath)),
	)
	return c, parser, err
}

// usageError is err of a command line, with how that command is called.
func usageError(err error) error {
	var line *kong.Context
	if pe := new(*kong.ParseError); errors.As(err, pe) {
		line = (*pe).Context
	}
	return parcel.NewError(parcel.Usage, "%v", err).WithHint("%s", usageOf(line))
}

// usageOf says how the command of a line is called, if it has one.
func usageOf(line *kong.Context) string {
	if line != nil && line.Selected() != nil {
		return "usage: " + programName + " " + line.Selected().Summary()
	}
	return "isr-locksrv help describes the commands"
}

// end says what has to be said of a command's end, and returns the status.
func (e *env) end(err error) int {
	lost := e.stdout.Err()
	if lost == nil {
		return complain(e.stderr, programName, err)
	}
	status := int(parcel.Failed)
	if err != nil && !errors.As(err, new(*output.Lost)) && !errors.Is(err, context.Canceled) {
		status = complain(e.stderr, programName, err)
	} else if lost.Gone() && !e.acted {
		return readerGone
	}
	unheard := parcel.NewError(parcel.Failed, "%v", lost)
	if e.acted {
		unheard = unheard.WithHint("what was done is done, and isr-locksrv log has it")
	}
	complain(e.stderr, programName, unheard)
	return status
}

// status_ is an exit status about which all was said already.
type status_ int

func (s status_) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// complain prints err and its hint, and returns the exit status.
func complain(w io.Writer, program string, err error) int {
	if err == nil {
		return 0
	}
	var s status_
	if errors.As(err, &s) {
		return int(s)
	}
	err = explain(err)
	fmt.Fprintf(w, "%s: error: %s\n", program, clip(parcel.Clean(err.Error())))
	var e *parcel.Error
	if errors.As(err, &e) && e.Hint != "" {
		fmt.Fprintf(w, "%s: hint: %s\n", program, clip(parcel.Clean(e.Hint)))
	}
	return int(parcel.KindOf(err))
}

// clip shortens a message that would fill the terminal: it may quote an
// argument, which may be of any length.
func clip(s string) string {
	const enough = 1500
	if len(s) <= 2*enough {
		return s
	}
	return strings.ToValidUTF8(s[:enough], "") + " … " + strings.ToValidUTF8(s[len(s)-enough:], "")
}

var anyPath = kong.NewRegistry().RegisterDefaults().ForNamedType("path", reflect.TypeFor[string]())

// decodePath reads the path of a file or directory. Kong takes an empty one for
// the directory we are in; but a script whose variable is not set did not mean
// that one to become a realm.
func decodePath(ctx *kong.DecodeContext, target reflect.Value) error {
	if text, ok := ctx.Scan.Peek().Value.(string); ok && text == "" {
		return errors.New("want a path; . is the directory you are in")
	}
	return anyPath.Decode(ctx, target)
}

// env is what every command has.
type env struct {
	root   string // as --root says; "": not said
	by     string // who works, if not who we are: see become
	stdout *output.Results
	stderr *os.File
	parser *kong.Kong
	acted  bool // something was changed
}

// leadingRoot takes --root from the front of args, for the scripts, whose
// arguments kong does not see.
func leadingRoot(args []string) (root string, rest []string, err error) {
	if len(args) == 0 {
		return "", args, nil
	}
	if r, ok := strings.CutPrefix(args[0], "--root="); ok && r != "" {
		return r, args[1:], nil
	}
	if args[0] == "--root" || args[0] == "--root=" {
		if len(args) == 1 || args[1] == "" {
			return "", nil, parcel.NewError(parcel.Usage, "--root: want a directory")
		}
		return args[1], args[2:], nil
	}
	return "", args, nil
}

type help struct {
	Command []string `arg:"" optional:"" help:"What to describe."`
}

func (h *help) Run(e *env) error {
	_, err := e.parser.Parse(append(h.Command, "--help"))
	if err != nil && e.stdout.Err() == nil {
		err = usageError(err)
	}
	return err
}
