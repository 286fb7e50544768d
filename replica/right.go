package replica

import (
	"context"
	"io"
	"time"

	"github.com/slashacom/slasha-init/internal/durable"
)

// right is the right to write the replica. Methods with the names of those of Replica
// do what is said there.
type right interface {
	take(ctx context.Context, memory *durable.Note) error
	takeOver(ctx context.Context, memory *durable.Note)
	release() (released bool)
	abandon()

	// do runs f, which may write the replica with the context that it gets.
	do(ctx context.Context, f func(ctx context.Context) error) error
	// valid returns nil while something may be written. All that was read of the
	// replica until then is ours, or older than our right.
	valid() error
	// reader returns r, to be read within do.
	reader(r io.Reader) io.Reader

	// check asks the replica for a sign of life, where it has not given one of late.
	check(ctx context.Context, ask func(context.Context) error) error
	checkInterval() time.Duration

	// missing is LeaseMissing of Replica.
	missing() error
	lost() error
	state() (state string, epoch uint64, holder string)
}

// checkInterval is how often an idle replica is asked for a sign of life: at least
// every 30 s by contract, with room for a slow answer. It costs about 93,000 requests
// a month.
const checkInterval = 28 * time.Second

// unguarded is the right that every instance has with --lease=off.
type unguarded struct{}

func (unguarded) take(ctx context.Context, _ *durable.Note) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

func (unguarded) takeOver(context.Context, *durable.Note) {}
func (unguarded) release() bool                           { return false }
func (unguarded) abandon()                                {}

func (unguarded) do(ctx context.Context, f func(context.Context) error) error { return f(ctx) }
func (unguarded) valid() error                                                { return nil }
func (unguarded) reader(r io.Reader) io.Reader                                { return r }

func (unguarded) check(ctx context.Context, ask func(context.Context) error) error { return ask(ctx) }
func (unguarded) checkInterval() time.Duration                                     { return checkInterval }

func (unguarded) missing() error                  { return nil }
func (unguarded) lost() error                     { return nil }
func (unguarded) state() (string, uint64, string) { return "off", 0, "" }
