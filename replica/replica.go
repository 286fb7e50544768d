// Package replica is the bucket, or the folder, as this container may use it: it may
// always read, and write only under the lease, because there is no other way to write.
//
// A Replica reads, a Writer writes. There is one door for writes: the right of right.go,
// whose do runs each upload and each deletion of a Writer (see writer.go).
//
// The lease is what instances on different volumes agree on. On one volume, the locks
// of package volume have settled that before, and so whoever leads a volume may take
// back what the volume held last. Package storage talks to the bucket, package lease
// keeps the record in it.
package replica

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/slashacom/slasha-init/internal/durable"
	"github.com/slashacom/slasha-init/internal/logs"
	"github.com/slashacom/slasha-init/replica/lease"
	"github.com/slashacom/slasha-init/replica/storage"
)

// Config is what a Replica needs. The hooks must not block, and are optional.
type Config struct {
	Settings

	// Who names this instance in the lease, for people.
	Who string

	// OnResult is called after each request to the replica, by the goroutine that
	// made it.
	OnResult func(Result)
	// OnWaiting is called while Take waits, with a sentence that says why, and with ""
	// when Take goes on. When Take fails, its error says why instead.
	OnWaiting func(sentence string)
	// OnLost is called once, when another instance has taken the lease: the app must
	// be stopped then. The error is that of Lost. It must not call Release or Abandon,
	// which wait for it.
	OnLost func(error)

	Logger *slog.Logger // default: slog.Default()
}

// Result is the outcome of one request to the replica.
type Result struct {
	Op    string // as in storage.Result
	At    time.Time
	Took  time.Duration
	Class string // "ok", or the storage.Class of the error
	Err   error  // nil: the replica answered as it should
}

// Replica is a bucket or a folder that one instance at a time may write. As a client of
// Litestream it only reads, and needs no lease for that: it is for comparing and
// restoring. Uploads and deletions go through its Writer. A Replica is safe for
// concurrent use, but Take, TakeOver, Release and Abandon are called one after
// another.
type Replica struct {
	readOnly
	right   right
	writer  *Writer
	secrets []string
}

// Open returns the replica that cfg names, whose lease is not held. It makes no
// request. It fails where the storage's configuration is impossible.
func Open(cfg Config) (*Replica, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	r := &Replica{secrets: []string{cfg.Storage.SecretAccessKey, cfg.Storage.AccessKeyID}}
	sc := cfg.Storage
	sc.Logger = cfg.Logger
	if cfg.OnResult != nil {
		sc.OnResult = func(res storage.Result) {
			class := "ok"
			if res.Err != nil {
				class = string(r.store.Explain(res.Err).Class)
			}
			cfg.OnResult(Result{Op: res.Op, At: res.At, Took: res.Took, Class: class, Err: res.Err})
		}
	}
	store, err := storage.Open(sc)
	if err != nil {
		return nil, err
	}
	r.readOnly, r.right = readOnly{store}, unguarded{}
	if cfg.Lease != Off {
		r.right = newClaim(cfg, store, r.Explain)
	}
	r.writer = &Writer{r.readOnly, r.right}
	return r, nil
}

// String is the replica's address for people: s3://bucket/prefix or file:///dir. It
// holds no secret.
func (r *Replica) String() string { return r.store.String() }

// Explain turns an error of the replica, or of its lease, into one sentence that a
// person can act on. The sentence holds no secret. temporary is true when the same
// request may well succeed later without anybody changing anything.
func (r *Replica) Explain(err error) (sentence string, temporary bool) {
	var held *lease.NotHeldError
	if errors.As(err, &held) && held.Err != nil {
		sentence, temporary := r.Explain(held.Err)
		return (&lease.NotHeldError{Err: errors.New(sentence)}).Error(), temporary
	}
	p := r.store.Explain(err)
	return logs.Redact(p.Sentence, r.secrets), p.Temporary
}

// Empty reports whether the replica is there, lets us in, and holds no backup in any
// format. It is true only when the replica has answered so.
func (r *Replica) Empty(ctx context.Context) (bool, error) { return r.store.Empty(ctx) }

// Writer returns the replica for uploads.
func (r *Replica) Writer() *Writer { return r.writer }

// Take takes the lease, before anything of the replica is used: an old writer may
// still be uploading. From then on, the lease is renewed until Release or Abandon.
// memory is where the volume remembers what it held last; it is nil on a volume that
// has no locks. A second call tries again.
//
// It waits only for another instance that has the lease, for at most
// Settings.Patience. If the replica does not answer, does not support conditional
// writes, or there is to be no lease, Take returns nil and the start goes on:
// LeaseMissing says whether it does so without a lease that it should have. But with the
// mode Required, the first two are errors.
//
// The error has an exit code: exit.Held when another instance kept the lease, or it is
// required and could not be had in time; exit.Config when it is required and the
// replica's service can't keep one. When ctx has ended, the error is its cause.
func (r *Replica) Take(ctx context.Context, memory *durable.Note) error {
	return r.right.take(ctx, memory)
}

// TakeOver takes the lease for an instance that followed and leads now. It returns
// after 3 s at most: replication begins even if another host has taken the lease
// meanwhile, and then reports why nothing is uploaded. The lease is renewed, or tried
// for, in the background. memory is that of Take.
func (r *Replica) TakeOver(ctx context.Context, memory *durable.Note) {
	r.right.takeOver(ctx, memory)
}

// LeaseMissing returns an error as long as this instance lacks the lease that it should
// have. That is so when Take went on because the replica did not answer, and also when
// another instance has the lease or it has lapsed. It is nil while the lease is held, and
// where there is none: with the mode Off, and with a service that can't keep one.
//
// The error is a *lease.NotHeldError. It does not say which of these is the case: its
// cause is always context.DeadlineExceeded, as fits after Take.
func (r *Replica) LeaseMissing() error { return r.right.missing() }

// While runs f under the lease. The context that f gets ends with the lease. If f has
// not ended by then, it has failed, whatever it returns: another instance may have
// written since, so what f has read may be out of date. Where there is no lease, f just
// runs.
//
// The error is that of f, a *lease.NotHeldError while the lease is not held, or one
// that has a method Final which returns true, after which this instance may never
// write again.
func (r *Replica) While(ctx context.Context, f func(ctx context.Context) error) error {
	return markFinal(r.right.do(ctx, f))
}

// Lost returns why this container may never write the replica again, or nil as long
// as it may. The error has the exit code exit.Held.
func (r *Replica) Lost() error { return r.right.lost() }

// Lease returns how the lease stands: one of the lease's states, or "off" where there
// is none; our epoch, 0 before it was held; and who has the lease, if that is another
// instance.
func (r *Replica) Lease() (state string, epoch uint64, holder string) { return r.right.state() }

// Release ends the renewals and gives the lease back, so that the next instance need
// not wait. It takes a second at most. Call it after the last upload, when the replica
// has all that was written here. It returns false where there was nothing to give
// back, and where that failed, which it logs.
func (r *Replica) Release() (released bool) { return r.right.release() }

// Abandon ends the renewals and keeps the lease until it expires: something was not
// uploaded, so this volume is the one to go on with.
func (r *Replica) Abandon() { r.right.abandon() }
