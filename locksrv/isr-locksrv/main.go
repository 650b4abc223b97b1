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
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"isr/store/parcel"
)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// cli is the command line.
type cli struct {
	Root string `help:"Directory of the realm. Default: $$ISR_ROOT, else ROOT of ${conf}, else ${root}." placeholder:"DIR" type:"path"`

	User struct {
		Add    userAdd    `cmd:"" help:"Add a user, or keys to one."`
		List   userList   `cmd:"" help:"List the users."`
		Del    userDel    `cmd:"" help:"Remove a user who owns no parcel."`
		Passwd userPasswd `cmd:"" help:"Give a user a password, or take it away."`
	} `cmd:"" help:"Who may have parcels."`
	Parcel struct {
		Import parcelImport `cmd:"" help:"Make a parcel from a disk image, raw or any that qemu-img reads."`
		Create parcelCreate `cmd:"" help:"Make a parcel with an empty disk."`
		List   parcelList   `cmd:"" help:"List parcels, and who holds them."`
		Copy   parcelCopy   `cmd:"" help:"Make a parcel as another is; the content is shared."`
		Export parcelExport `cmd:"" help:"Write the disk of a parcel to a raw image file."`
		Del    parcelDel    `cmd:"" help:"Remove a parcel and all its versions."`
	} `cmd:"" help:"What there is to check out."`
	Check check `cmd:"" help:"Verify the store; exit status 0 only if it is sound."`

	Backup  backups `cmd:"" help:"Copies of the realm elsewhere."`
	Restore restore `cmd:"" help:"Make a realm of a backup, or bring a parcel back from one."`
	Mirror  mirror  `cmd:"" help:"Keep a copy of the realm that can be served at once."`

	Serve          serve            `cmd:"" help:"Answer clients: the built-in SSH server."`
	Shell          shell            `cmd:"" help:"Answer one session of sshd: the forced command of a user's key."`
	AuthorizedKeys authorizedKeys   `cmd:"" help:"Print the keys of users as sshd wants them."`
	Complete       complete         `cmd:"" hidden:""`
	Completion     completionScript `cmd:"" help:"Print what a shell needs to complete command lines: bash, zsh or fish."`
	Links          links            `cmd:"" help:"Make the pilot's script names as links to this program."`
	Version        version          `cmd:"" help:"Print the version."`
	Help           help             `cmd:"" help:"Describe the commands, or one." hidden:""`
}

// endings are the signals that ask the program to end.
var endings = []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP}

// exited carries the status of kong's own exits, such as that of --help.
type exited int

// run is the program: it returns the exit status.
func run(argv []string, stdout, stderr *os.File) (status int) {
	name := filepath.Base(argv[0])
	root, rest, err := leadingRoot(argv[1:])
	switch {
	case err != nil:
		return complain(stderr, "isr-locksrv", err)
	case strings.HasPrefix(name, scriptPrefix):
		return script(root, append([]string{name}, rest...), stdout, stderr)
	case len(rest) > 0 && strings.HasPrefix(rest[0], scriptPrefix):
		return script(root, rest, stdout, stderr)
	}

	// The first signal lets a command clean up; a second one ends it.
	ctx, stop := signal.NotifyContext(context.Background(), endings...)
	defer stop()
	context.AfterFunc(ctx, stop)
	defer func() {
		if p := recover(); p != nil {
			code, ok := p.(exited)
			if !ok {
				panic(p)
			}
			status = int(code)
		}
	}()
	var c cli
	parser, err := kong.New(&c,
		kong.Name("isr-locksrv"),
		kong.Description("Keeps the parcels of Internet Suspend/Resume, and their locks."),
		kong.Vars{"conf": confFile, "root": defaultRoot()},
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { panic(exited(code)) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.BindTo(ctx, (*context.Context)(nil)),
	)
	if err != nil {
		return complain(stderr, "isr-locksrv", err)
	}
	args := argv[1:]
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		return complain(stderr, "isr-locksrv", parcel.NewError(parcel.Usage, "%v", err).
			WithHint("isr-locksrv help describes the commands"))
	}
	err = parsed.Run(&env{root: c.Root, stdout: stdout, stderr: stderr, parser: parser})
	if err != nil && ctx.Err() != nil && !errors.As(err, new(status_)) {
		err = parcel.NewError(parcel.Interrupted, "interrupted")
	}
	return complain(stderr, "isr-locksrv", err)
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
	fmt.Fprintf(w, "%s: error: %s\n", program, parcel.Clean(err.Error()))
	var e *parcel.Error
	if errors.As(err, &e) && e.Hint != "" {
		fmt.Fprintf(w, "%s: hint: %s\n", program, parcel.Clean(e.Hint))
	}
	return int(parcel.KindOf(err))
}

// env is what every command has.
type env struct {
	root           string // as --root says; "": not said
	stdout, stderr *os.File
	parser         *kong.Kong
}

// leadingRoot takes --root from the front of args, for the scripts, whose
// arguments kong does not see.
func leadingRoot(args []string) (root string, rest []string, err error) {
	if len(args) == 0 {
		return "", args, nil
	}
	if r, ok := strings.CutPrefix(args[0], "--root="); ok {
		return r, args[1:], nil
	}
	if args[0] == "--root" {
		if len(args) == 1 {
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
	return err
}
