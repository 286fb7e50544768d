package replicate

import (
	"context"
	"slices"
	"sync"

	"github.com/superfly/ltx"
)

// noted is a line that admits everything, and notes the calls. Its
// funcs replace an answer.
type noted struct {
	admit, drop, anchored func() error

	mu           sync.Mutex
	isNew        bool
	calls        []string
	acked, tried ltx.TXID
	synced       ltx.TXID
}

func (n *noted) note(call string, answer func() error) error {
	n.mu.Lock()
	n.calls = append(n.calls, call)
	n.mu.Unlock()
	if answer == nil {
		return nil
	}
	return answer()
}

func (n *noted) Admit(context.Context) error { return n.note("admit", n.admit) }
func (n *noted) Drop() error                 { return n.note("drop", n.drop) }
func (n *noted) Begin() error                { n.setNew(true); return n.note("begin", nil) }

func (n *noted) Anchored() error {
	n.setNew(false)
	return n.note("anchored", n.anchored)
}

func (n *noted) setNew(isNew bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.isNew = isNew
}

func (n *noted) IsNew() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.isNew
}

func (n *noted) Synced(txid ltx.TXID)   { n.raise(&n.synced, txid) }
func (n *noted) Uploaded(txid ltx.TXID) { n.raise(&n.acked, txid) }
func (n *noted) Tried(txid ltx.TXID)    { n.raise(&n.tried, txid) }

func (n *noted) raise(what *ltx.TXID, txid ltx.TXID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	*what = max(*what, txid)
}

func (n *noted) Acked() ltx.TXID {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.acked
}

// called counts the calls of a kind.
func (n *noted) called(call string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(slices.DeleteFunc(slices.Clone(n.calls), func(c string) bool { return c != call }))
}
