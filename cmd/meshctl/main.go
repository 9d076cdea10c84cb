// Command meshctl installs the management plane and registers clusters with it.
//
// In: arguments, the environment, the terminal. Out: an exit code. Everything else is internal/cli.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"ambitmesh.dev/ambit/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], cli.Streams{Out: os.Stdout, Err: os.Stderr, Terminal: terminal(os.Stdout)})
	stop()
	os.Exit(code)
}

// terminal reports whether f shows colours: NO_COLOR (no-color.org) and TERM=dumb say no.
func terminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}
