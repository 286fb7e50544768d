package fetch

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// group is an errgroup.Group that raises a panic of one of its goroutines again in the
// goroutine that waits: only there can a caller recover it. A bug here must not end a
// process that does something else too.
type group struct {
	*errgroup.Group
	bug atomic.Pointer[panicked]
}

func newGroup(ctx context.Context) (*group, context.Context) {
	g, ctx := errgroup.WithContext(ctx)
	return &group{Group: g}, ctx
}

// Go is errgroup's. A panic ends the group's context, as an error does.
func (g *group) Go(f func() error) {
	g.Group.Go(func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				bug, again := p.(*panicked)
				if !again {
					bug = &panicked{value: p, stack: debug.Stack()}
				}
				g.bug.CompareAndSwap(nil, bug)
				err = bug
			}
		}()
		return f()
	})
}

// Wait is errgroup's, and panics where a goroutine did.
func (g *group) Wait() error {
	err := g.Group.Wait()
	if bug := g.bug.Load(); bug != nil {
		panic(bug)
	}
	return err
}

// panicked is a panic of another goroutine.
type panicked struct {
	value any
	stack []byte
}

func (p *panicked) Error() string { return fmt.Sprintf("%v, in\n%s", p.value, p.stack) }
