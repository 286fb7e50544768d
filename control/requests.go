package control

import (
	"sync"
	"time"
)

// Kind is what a request asks of a running container.
type Kind int

// The kinds of requests. Sync and Restore come from outside, through the socket. Stale
// and Lost come from the program itself.
//
// A Sync does not stop the app. The server carries it out by itself, with Config.Sync, in
// the goroutine of whoever asks: any number at the same time, beside whatever else goes on.
// The other kinds stop the app, so they are placed in Requests, and main carries them out
// once the app has ended.
const (
	Sync    Kind = iota // upload everything that is committed
	Restore             // restore the replica, as of now or of a moment
	Stale               // the database turned out to be stale: restore if that is right
	Lost                // another instance took the lease: end this container
)

// kinds says how the container carries out each kind.
var kinds = [...]struct {
	stops bool // the app is stopped for it: it goes through Requests
	again bool // the app is started again afterwards
	lasts bool // it stays true, so one that comes too early is kept until the app runs
}{
	Sync:    {},
	Restore: {stops: true, again: true},
	Stale:   {stops: true, again: true},
	Lost:    {stops: true, lasts: true},
}

// Request asks a running container for one thing.
type Request struct {
	Kind Kind

	// Timestamp is the moment to restore; zero is the newest state.
	Timestamp time.Time

	// PID is the process that asks. It is 0 for the program itself, and where the kernel
	// can't say, as for a process of another PID namespace.
	PID int

	answered chan answer // has room for one; made by Place, so a Sync has none
}

type answer struct {
	restored Restored
	err      error
}

// Answer ends a request that Take returned, with its outcome. Whoever asked waits for
// it, so each such request gets one answer.
func (r *Request) Answer(restored Restored, err error) { r.answered <- answer{restored, err} }

// wait returns the answer to a request that was placed.
func (r *Request) wait() (Restored, error) {
	a := <-r.answered
	return a.restored, a.err
}

// Requests are those that stop the app (every kind but Sync): one at a time, and only while
// the app runs and is not stopping. They are safe for concurrent use. The zero value accepts none yet.
type Requests struct {
	mu    sync.Mutex
	stop  chan struct{} // closed by the first request; nil while none is accepted
	first *Request      // was accepted, and is not taken yet
	early *Request      // came when none was accepted, and stays true
}

// Open accepts requests from now on. It returns the channel that the first request
// closes, to stop the app. A request that came too early closes it at once.
func (q *Requests) Open() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	stop := make(chan struct{})
	q.stop = stop
	if early := q.early; early != nil && q.accept(early) {
		q.early = nil
	}
	return stop
}

// Place hands in a request of a kind that stops the app, and reports whether it was
// accepted. A Sync never is. A Lost that can't be accepted yet is kept for the next Open.
func (q *Requests) Place(r *Request) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !kinds[r.Kind].stops {
		return false
	}
	r.answered = make(chan answer, 1)
	accepted := q.accept(r)
	if !accepted && kinds[r.Kind].lasts {
		q.early = r
	}
	return accepted
}

func (q *Requests) accept(r *Request) bool {
	if q.stop == nil || q.first != nil {
		return false
	}
	q.first = r
	close(q.stop)
	return true
}

// Close accepts no more requests, and reports whether there is one after which the app
// is started again.
func (q *Requests) Close() (again bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stop = nil
	return q.first != nil && kinds[q.first.Kind].again
}

// PID is the process whose request stops the app, or 0. The stop spares it: it waits for
// the answer.
func (q *Requests) PID() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.first == nil {
		return 0
	}
	return q.first.PID
}

// Take accepts no more requests, and returns the one that the app was stopped for, or
// nil. aborted says that only the request stopped the app: one that came together with
// another end is refused, as the container is going to end.
func (q *Requests) Take(aborted bool) *Request {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stop = nil
	taken := q.first
	q.first = nil
	if taken != nil && !aborted {
		taken.Answer(Restored{}, &Refusal{"the container is stopping; nothing was restored"})
		return nil
	}
	return taken
}
