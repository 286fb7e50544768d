package replicate

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/superfly/ltx"
)

// asks are the callers that wait until what they committed is in the replica.
type asks struct {
	wake chan struct{} // has room for one: somebody asks

	mu      sync.Mutex
	waiting []ask
}

type ask struct {
	at   time.Time
	done chan ltx.TXID // has room for one
}

// Sync returns when everything whose commit returned before the call is in the
// replica, with the newest transaction there; that is 0 as long as there is no
// database. It does not wait for the sync interval, and several calls at a time
// share an upload. While the replica is out of reach it waits: the error is
// that of ctx. It is safe for concurrent use, beside Run.
func (r *Replicator) Sync(ctx context.Context) (ltx.TXID, error) {
	a := ask{at: time.Now(), done: make(chan ltx.TXID, 1)}
	r.asks.add(a)
	select {
	case txid := <-a.done:
		return txid, nil
	case <-ctx.Done():
		r.asks.remove(a)
		return 0, ctx.Err()
	}
}

func (q *asks) add(a ask) {
	q.mu.Lock()
	q.waiting = append(q.waiting, a)
	q.mu.Unlock()
	q.hurry()
}

// hurry makes the next turn begin without a rest.
func (q *asks) hurry() {
	select {
	case q.wake <- struct{}{}:
	default: // it is due already
	}
}

func (q *asks) remove(a ask) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = slices.DeleteFunc(q.waiting, func(b ask) bool { return a.done == b.done })
}

// answer releases the callers that asked before the WAL was read: what it held is in
// the replica, up to txid.
func (q *asks) answer(read time.Time, txid ltx.TXID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = slices.DeleteFunc(q.waiting, func(a ask) bool {
		if a.at.After(read) {
			return false
		}
		a.done <- txid
		return true
	})
}
