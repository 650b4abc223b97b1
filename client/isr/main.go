// Command isr is the client of isr(1): Internet Suspend/Resume over SSH.
//
// It parses the command line (grammar), has package client do the work, and
// tells the person in front what happened (screen). It promises the exit
// statuses of isr(1), and results alone on standard output. It decides nothing
// about parcels.
package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"

	"isr/client"
	"isr/client/auth"
	"isr/client/conf"
	"isr/client/remote"
	"isr/store/parcel"
)

// grammar is the command line. Its help texts are short: isr(1) is the manual.
type grammar struct {
	Server    string            `short:"s" placeholder:"[LOGIN@]HOST[:PORT]" env:"ISR_SERVER" help:"Lock server."`
	User      string            `short:"u" name:"user" placeholder:"USERID" env:"ISR_USER" help:"ISR user; the login name if none is given."`
	Quiet     bool              `short:"q" help:"Say nothing unless things go wrong, and ask nothing."`
	Verbose   int               `short:"v" type:"counter" help:"Say more."`
	Yes       bool              `help:"Answer every question with yes."`
	SSHOption map[string]string `name:"ssh-option" placeholder:"KEY=VALUE" help:"An option of ssh_config(5)."`
	Program   versionFlag       `name:"version" help:"Print the version."`

	Auth       authCmd       `cmd:"" help:"Log in once for many commands, until deauth or log-out."`
	AuthKeeper authKeeperCmd `cmd:"" hidden:""`
	Checkhoard checkhoardCmd `cmd:"" help:"Check the hoard, and repair what can be."`
	Checkin    checkinCmd    `cmd:"" aliases:"ci" help:"Make a version of a parcel on the server and give its lock back."`
	Checkout   checkoutCmd   `cmd:"" aliases:"co" help:"Take a parcel's lock and get what it needs to run."`
	Checkp     checkpCmd     `cmd:"" help:"Check a parcel, here or on the server."`
	Clean      cleanCmd      `cmd:"" help:"Remove a parcel from this host and give its lock back, saving nothing."`
	Config     configCmd     `cmd:"" help:"Show the configuration in force and where it comes from."`
	Connect    lkaCmd        `cmd:"" name:"connect-lka" help:"Have a place of objects asked before the network."`
	Deauth     deauthCmd     `cmd:"" help:"End what auth began."`
	Dirt       dirtCmd       `cmd:"" name:"dirtometer" help:"Show what a running parcel does with its disk and memory."`
	Discard    discardCmd    `cmd:"" help:"Give up what changed here since checkout or sync."`
	Export     exportCmd     `cmd:"" name:"export-lka" help:"Write a parcel's objects to a directory, to look aside in."`
	Help       helpCmd       `cmd:"" help:"Show a brief summary."`
	Hoard      hoardCmd      `cmd:"" help:"Fetch all of a parcel's disk, to run without a network."`
	Keeper     keeperCmd     `cmd:"" hidden:""`
	Ls         lsCmd         `cmd:"" help:"List parcels on the server."`
	Lshoard    lshoardCmd    `cmd:"" help:"List the parcels that are hoarded here."`
	Passwd     passwdCmd     `cmd:"" help:"Change your ISR password."`
	Poweroff   poweroffCmd   `cmd:"" help:"Delete a suspended parcel's memory image: it will boot."`
	Report     reportCmd     `cmd:"" help:"Show what the server is told of the use of parcels, or send it."`
	Rescue     rescueCmd     `cmd:"" help:"Make a new parcel of one that cannot be checked in."`
	Resume     resumeCmd     `cmd:"" help:"Check a parcel out if need be, and run it."`
	Rmhoard    rmhoardCmd    `cmd:"" help:"Remove what is hoarded of a parcel from this host."`
	Stat       statCmd       `cmd:"" help:"Show what of a parcel is here."`
	Sync       syncCmd       `cmd:"" help:"Make a version of a parcel on the server and keep its lock."`
	UUID       uuidCmd       `cmd:"" name:"uuid" help:"Print a parcel's UUID."`
	Version    versionCmd    `cmd:"" help:"Print the version of this program."`

	// For shells, and the pilot's scripts.
	Complete   completeCmd   `cmd:"" hidden:""`
	Completion completionCmd `cmd:"" help:"Print what a shell needs to complete isr's command lines."`
	Names      namesCmd      `cmd:"" hidden:""`
	Run        runCmd        `cmd:"" hidden:""`
}

// app is what a command runs with.
type app struct {
	*screen
	g      *grammar
	parser *kong.Kong
	ctx    context.Context
	client *client.Client
	conf   *conf.Config // once asked for
}

func main() { os.Exit(run()) }

func run() int {
	s := newScreen()
	words := os.Args[1:]
	if sc, ok := scripts[filepath.Base(os.Args[0])]; ok {
		s.name = filepath.Base(os.Args[0])
		var err error
		if words, err = sc.commandLine(s, s.name, words); err != nil {
			return s.end(err)
		}
	}
	var g grammar
	parser, err := newParser(&g, s, "isr", "Internet Suspend/Resume over SSH. The manual is isr(1).")
	if err != nil {
		return s.fail(err)
	}
	if len(words) == 0 {
		s.print("", "a command is missing: isr help lists them, isr(1) explains them")
		return int(parcel.Usage)
	}
	k, err := parser.Parse(words)
	if err != nil {
		var pe *kong.ParseError
		if errors.As(err, &pe) {
			return s.fail(usageError(parser.Model, "isr", pe.Context, err))
		}
		return s.fail(err)
	}
	s.quiet, s.verbose = g.Quiet, g.Verbose > 0
	s.yes = g.Yes || g.Quiet
	if k.Command() == "keeper <parcel>" {
		return s.fail(client.Keeper())
	}
	if k.Command() == "auth-keeper" {
		return s.fail(auth.Background())
	}
	ctx, ended := interruptible()
	a := &app{screen: s, g: &g, parser: parser, ctx: ctx}
	err = k.Run(a, parser)
	if a.client != nil {
		a.client.Close()
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		s.finish()
		s.print("", "interrupted; run it again to go on")
		return 128 + int(ended())
	}
	s.finish()
	return s.end(err)
}

// interruptible is a context that ends at the first signal that asks for the
// end, and what tells which that was. A signal that was ignored when we were
// started stays so: nohup, and a shell's background, mean it.
func interruptible() (context.Context, func() syscall.Signal) {
	ctx, cancel := context.WithCancel(context.Background())
	c := make(chan os.Signal, 1)
	client.NotifyEnd(c)
	first := make(chan syscall.Signal, 1)
	go func() {
		sig := <-c
		first <- sig.(syscall.Signal)
		cancel()
	}()
	return ctx, func() syscall.Signal { return <-first }
}

// configuration is what the files, the environment and the command line say.
func (a *app) configuration() (*conf.Config, error) {
	if a.conf != nil {
		return a.conf, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, err
	}
	cfg, err := conf.Load(home, conf.Files(home))
	if err != nil {
		return nil, err
	}
	for _, n := range cfg.Notices() {
		a.Warn("%s", n)
	}
	for _, f := range []struct{ name, value, env string }{{"server", a.g.Server, "ISR_SERVER"}, {"userid", a.g.User, "ISR_USER"}} {
		from := "command line"
		if f.value == os.Getenv(f.env) {
			from = "environment " + f.env
		}
		if f.value != "" {
			if err := cfg.Set(f.name, f.value, from); err != nil {
				return nil, parcel.NewError(parcel.Usage, "%s: %v", from, err)
			}
		}
	}
	a.conf = cfg
	return cfg, nil
}

// open prepares the client for a command that needs one.
func (a *app) open(limit remote.Limit) (*client.Client, error) { return a.openWith(limit, "") }

// openWith is open with a compression profile from the command line.
func (a *app) openWith(limit remote.Limit, profile string) (*client.Client, error) {
	cfg, err := a.configuration()
	if err != nil {
		return nil, err
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	for _, way := range []*int64{&limit.Up, &limit.Down} {
		if *way == 0 {
			*way = cfg.Count("bwlimit") << 10
		}
	}
	ssh := maps.Clone(a.g.SSHOption)
	if d := cfg.Duration("connect_timeout"); d > 0 && ssh["ConnectTimeout"] == "" {
		if ssh == nil {
			ssh = make(map[string]string)
		}
		ssh["ConnectTimeout"] = fmt.Sprint(max(1, int(d.Seconds())))
	}
	o := client.Options{Dir: cfg.Get("isrdir"), Host: cfg.Get("hostname"), Home: home, Server: cfg.Get("server"), User: cfg.Get("userid"),
		Said:  a.g.Server != "" && a.g.Server != os.Getenv("ISR_SERVER"),
		Limit: limit, Quota: cfg.Size("hoard_quota"), SSH: ssh, Patience: cfg.Duration("patience"), LockPoll: cfg.Duration("lock_poll"),
		Compression: cfg.Get("compression"), ChunkCache: cfg.Count("chunk_cache") << 20, Commands: cfg.Commands(),
		Prompter: a.screen, UI: a.screen, Program: program, Release: version(), Report: cfg.Get("report")}
	if profile != "" {
		o.Compression, o.CompressionAsked = profile, true
	}
	if !cfg.Bool("disable_lookaside") {
		o.LookAside = cfg.List("lookaside")
	}
	a.client, err = client.New(o)
	return a.client, err
}

// release is set by the linker in a packaged build.
var release = "dev"

func version() string {
	v := release
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				v += " " + s.Value[:12]
			}
		}
	}
	return v
}
