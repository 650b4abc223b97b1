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
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"isr/client"
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

	Checkin  checkinCmd  `cmd:"" aliases:"ci" help:"Make a version of a parcel on the server and give its lock back."`
	Checkout checkoutCmd `cmd:"" aliases:"co" help:"Take a parcel's lock and get what it needs to run."`
	Clean    cleanCmd    `cmd:"" help:"Remove a parcel from this host and give its lock back, saving nothing."`
	Discard  discardCmd  `cmd:"" help:"Give up what changed here since checkout or sync."`
	Help     helpCmd     `cmd:"" help:"Show a brief summary."`
	Hoard    hoardCmd    `cmd:"" help:"Fetch all of a parcel's disk, to run without a network."`
	Keeper   keeperCmd   `cmd:"" hidden:""`
	Ls       lsCmd       `cmd:"" help:"List parcels on the server."`
	Poweroff poweroffCmd `cmd:"" help:"Delete a suspended parcel's memory image: it will boot."`
	Resume   resumeCmd   `cmd:"" help:"Check a parcel out if need be, and run it."`
	Stat     statCmd     `cmd:"" help:"Show what of a parcel is here."`
	Sync     syncCmd     `cmd:"" help:"Make a version of a parcel on the server and keep its lock."`
	UUID     uuidCmd     `cmd:"" name:"uuid" help:"Print a parcel's UUID."`
	Version  versionCmd  `cmd:"" help:"Print the version of this program."`
}

// app is what a command runs with.
type app struct {
	*screen
	g      *grammar
	ctx    context.Context
	client *client.Client
}

func main() { os.Exit(run()) }

func run() int {
	s := newScreen()
	var g grammar
	parser, err := kong.New(&g, kong.Name("isr"), kong.Description("Internet Suspend/Resume over SSH. The manual is isr(1)."),
		kong.UsageOnError(), kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
	if err != nil {
		return s.fail(err)
	}
	if len(os.Args) == 1 {
		fmt.Fprintln(os.Stderr, "isr: a command is missing: isr help lists them, isr(1) explains them")
		return int(parcel.Usage)
	}
	k, err := parser.Parse(os.Args[1:])
	if err != nil {
		return s.fail(parcel.NewError(parcel.Usage, "%v", err).WithHint("isr help lists the commands, isr(1) explains them"))
	}
	s.quiet, s.verbose = g.Quiet, g.Verbose > 0
	s.yes = g.Yes || g.Quiet
	if k.Command() == "keeper <parcel>" {
		return s.fail(client.Keeper())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	a := &app{screen: s, g: &g, ctx: ctx}
	err = k.Run(a, parser)
	if a.client != nil {
		a.client.Close()
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		s.finish()
		s.print("", "interrupted; run it again to go on")
		return int(parcel.Interrupted)
	}
	s.finish()
	return s.fail(err)
}

// open prepares the client for a command that needs one.
func (a *app) open(limit remote.Limit) (*client.Client, error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cfg, err := readConfig(home)
	if err != nil {
		return nil, err
	}
	if a.g.Server != "" {
		cfg.server = a.g.Server
	}
	if a.g.User != "" {
		cfg.user = a.g.User
	}
	a.client, err = client.New(client.Options{Dir: cfg.dir, Host: cfg.host, Home: home, Server: cfg.server, User: cfg.user,
		Limit: limit, Quota: cfg.quota, SSH: a.g.SSHOption, Prompter: a.screen, UI: a.screen, Program: program})
	return a.client, err
}

// config is what the configuration files may set of a client.
type config struct {
	server, user, dir, host string
	quota                   int64
}

// readConfig reads the site's and then the user's configuration file; a later
// one overrides an earlier.
func readConfig(home string) (config, error) {
	c := config{dir: filepath.Join(home, ".isr")}
	for _, name := range []string{"/usr/share/openisr/config", "/etc/openisr/openisr.conf", filepath.Join(home, ".openisrrc")} {
		p, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return c, err
		}
		for i, line := range strings.Split(string(p), "\n") {
			line, _, _ = strings.Cut(line, "#")
			if strings.TrimSpace(line) == "" {
				continue
			}
			key, value, ok := strings.Cut(line, "=")
			key, value = strings.TrimSpace(key), strings.TrimSpace(value)
			switch {
			case !ok:
				err = errors.New("want key = value")
			case key == "server":
				c.server = value
			case key == "userid":
				c.user = value
			case key == "hostname":
				c.host = value
			case key == "isrdir":
				c.dir = expand(value, home)
			case key == "hoard_quota":
				c.quota, err = parseSize(value)
			default:
				err = fmt.Errorf("unknown variable %s", key)
			}
			if err != nil {
				return c, parcel.NewError(parcel.Usage, "%s: line %d: %v", name, i+1, err)
			}
		}
	}
	return c, nil
}

// expand replaces \h by the home directory and \u by the login name.
func expand(s, home string) string {
	login := ""
	if u, err := user.Current(); err == nil {
		login = u.Username
	}
	return strings.NewReplacer(`\h`, home, `\u`, login).Replace(s)
}

// parseSize reads bytes with an optional suffix K, M, G or T.
func parseSize(s string) (int64, error) {
	var n int64
	var unit string
	if c, err := fmt.Sscanf(s, "%d%s", &n, &unit); c == 0 || n < 0 || err != nil && c != 1 {
		return 0, fmt.Errorf("size %q: want a number and K, M, G or T", s)
	}
	shift, ok := map[string]int{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[strings.TrimSuffix(strings.ToUpper(unit), "IB")]
	if !ok || n > 1<<62>>shift {
		return 0, fmt.Errorf("size %q: want a number and K, M, G or T", s)
	}
	return n << shift, nil
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
