package replica

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/durable"
	"github.com/slashacom/slasha-init/internal/exit"
	"github.com/slashacom/slasha-init/internal/testbed"
	"github.com/slashacom/slasha-init/replica/lease"
	"github.com/slashacom/slasha-init/replica/storage"
)

var (
	_ litestream.ReplicaClient   = (*Replica)(nil)
	_ litestream.ReplicaClientV3 = (*Replica)(nil)
	_ litestream.ReplicaClient   = (*Writer)(nil)
	_ litestream.ReplicaClientV3 = (*Writer)(nil)
)

// A replica must not see the environment of the person who runs the tests.
func TestMain(m *testing.M) {
	storage.IsolateEnvironment(true)
	m.Run()
}

// instance is a Replica, and what it has reported.
type instance struct {
	*Replica
	said chan string // by OnWaiting
	lost chan error  // by OnLost
	log  *buffer

	mu  sync.Mutex
	ops map[string]int // requests that were made
}

// buffer is a log that can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (i *instance) requests(op string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.ops[op]
}

// open returns an instance that is not waited for: nothing is taken yet.
func open(t *testing.T, s Settings, who string) *instance {
	t.Helper()
	i := &instance{said: make(chan string, 100), lost: make(chan error, 100), log: &buffer{}, ops: map[string]int{}}
	if s.TTL == 0 {
		s.TTL = time.Minute
	}
	if s.Patience == 0 {
		s.Patience = time.Minute
	}
	r, err := Open(Config{
		Settings: s,
		Who:      who,
		OnResult: func(r Result) {
			i.mu.Lock()
			defer i.mu.Unlock()
			if i.ops[r.Op]++; (r.Class == "ok") != (r.Err == nil) {
				t.Errorf("class %s, error %v", r.Class, r.Err)
			}
		},
		OnWaiting: func(s string) { i.said <- s },
		OnLost:    func(err error) { i.lost <- err },
		Logger:    slog.New(slog.NewTextHandler(i.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Abandon)
	i.Replica = r
	return i
}

// folder are the settings of a replica in a local folder.
func folder(dir string) Settings {
	return Settings{Storage: storage.Config{Endpoint: storage.Endpoint{Dir: dir}}}
}

// record is where the lease's record lies in a folder.
func record(dir string) string { return filepath.Join(dir, "slasha", "lease.json") }

func (i *instance) mustTake(t *testing.T) {
	t.Helper()
	if err := i.Take(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	i.wantLease(t, "held")
}

func (i *instance) wantLease(t *testing.T, want string) {
	t.Helper()
	if state, epoch, holder := i.Lease(); state != want {
		t.Errorf("the lease is %s, epoch %d, held by %q; want %s", state, epoch, holder, want)
	}
}

// upload writes a file that only has to look like one.
func upload(ctx context.Context, w litestream.ReplicaClient, txid ltx.TXID) error {
	h := ltx.Header{Version: ltx.Version, Flags: ltx.HeaderFlagNoChecksum, PageSize: 4096, Commit: 1, MinTXID: txid, MaxTXID: txid, Timestamp: time.Now().UnixMilli()}
	b, err := h.MarshalBinary()
	if err != nil {
		return err
	}
	_, err = w.WriteLTXFile(ctx, 0, txid, txid, bytes.NewReader(append(b, make([]byte, 100)...)))
	return err
}

// list counts the files of level 0, and reads them as Litestream does.
func list(ctx context.Context, c litestream.ReplicaClient) (int, error) {
	itr, err := c.LTXFiles(ctx, 0, 0, false)
	if err != nil {
		return 0, err
	}
	files, err := ltx.SliceFileIterator(itr)
	return len(files), err
}

// receive returns what comes from c, within a time that is more than enough.
func receive[T any](t *testing.T, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(30 * time.Second):
		t.Fatal("nothing happened for 30 s")
	}
	return v
}

// wantReadOnly tries to write a replica as a reader, which never works, and to delete all
// of it.
func wantReadOnly(t *testing.T, r *Replica) {
	t.Helper()
	files := []*ltx.FileInfo{{Level: 0, MinTXID: 1, MaxTXID: 1}}
	for what, err := range map[string]error{
		"write":                        upload(t.Context(), r, 2),
		"delete":                       r.DeleteLTXFiles(t.Context(), files),
		"delete everything":            r.DeleteAll(t.Context()),
		"delete everything, as writer": r.Writer().DeleteAll(t.Context()),
	} {
		if err == nil {
			t.Errorf("%s: it worked", what)
		}
	}
}

// None of the ways to change a replica gets past the lease. Reading needs none, but a
// writer's list is only believed under it.
func TestWritesNeedTheLease(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := open(t, folder(dir), "one")
	ctx := t.Context()
	closed := func(when string) {
		t.Helper()
		files := []*ltx.FileInfo{{Level: 0, MinTXID: 1, MaxTXID: 1}}
		for what, err := range map[string]error{
			"write":  upload(ctx, r.Writer(), 2),
			"delete": r.Writer().DeleteLTXFiles(ctx, files),
			"while":  r.While(ctx, func(context.Context) error { t.Error("it runs"); return nil }),
		} {
			var refused *lease.NotHeldError
			if !errors.As(err, &refused) {
				t.Errorf("%s, %s: %v", when, what, err)
			}
		}
		if _, err := list(ctx, r.Writer()); !errors.As(err, new(*lease.NotHeldError)) {
			t.Errorf("%s, a writer's list: %v", when, err)
		}
		wantReadOnly(t, r.Replica)
	}
	closed("before")
	if n, err := list(ctx, r); n != 0 || err != nil {
		t.Errorf("%d files, %v", n, err)
	}
	if empty, err := r.Empty(ctx); !empty || err != nil {
		t.Errorf("empty: %v, %v", empty, err)
	}

	r.mustTake(t)
	if err := r.LeaseMissing(); err != nil {
		t.Error(err)
	}
	for txid := ltx.TXID(1); txid <= 2; txid++ {
		if err := upload(ctx, r.Writer(), txid); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Writer().DeleteLTXFiles(ctx, []*ltx.FileInfo{{Level: 0, MinTXID: 2, MaxTXID: 2}}); err != nil {
		t.Error(err)
	}
	if n, err := list(ctx, r.Writer()); n != 1 || err != nil {
		t.Errorf("%d files, %v", n, err)
	}
	failed := errors.New("failed")
	if err := r.While(ctx, func(context.Context) error { return failed }); !errors.Is(err, failed) {
		t.Error(err)
	}
	wantReadOnly(t, r.Replica)

	if !r.Release() {
		t.Error("it was not released")
	}
	closed("after")
	if n, err := list(ctx, r); n != 1 || err != nil {
		t.Errorf("%d files, %v", n, err)
	}
	if b, err := os.ReadFile(record(dir)); err != nil || !strings.Contains(string(b), `"released": true`) {
		t.Errorf("%s, %v", b, err)
	}
	if err := r.Lost(); err != nil {
		t.Error(err)
	}
}

// With --lease=off every instance may write, no lease is requested, and each check
// asks the replica.
func TestModeOff(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := folder(dir)
	s.Lease = Off
	r := open(t, s, "one")
	ctx := t.Context()
	if err := upload(ctx, r.Writer(), 1); err != nil {
		t.Error(err)
	}
	wantReadOnly(t, r.Replica)
	if err := r.Take(ctx, nil); err != nil {
		t.Error(err)
	}
	r.TakeOver(ctx, nil)
	r.wantLease(t, "off")
	if err := errors.Join(r.LeaseMissing(), r.Lost(), upload(ctx, r.Writer(), 2)); err != nil {
		t.Error(err)
	}
	if n, err := list(ctx, r.Writer()); n != 2 || err != nil {
		t.Errorf("%d files, %v", n, err)
	}
	ran := false
	if err := r.While(ctx, func(context.Context) error { ran = true; return nil }); err != nil || !ran {
		t.Errorf("ran: %v, %v", ran, err)
	}
	for range 2 {
		if err := r.Writer().Check(ctx); err != nil {
			t.Error(err)
		}
	}
	if n := r.requests("check"); n != 2 || r.Writer().CheckInterval() != 28*time.Second {
		t.Errorf("%d requests, one each %s", n, r.Writer().CheckInterval())
	}
	if r.Release() {
		t.Error("a lease was released")
	}
	r.Abandon()
	if _, err := os.Stat(record(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a record: %v", err)
	}
}

// A renewal is a sign of life too: under the lease, a check makes no request as long as
// one has worked of late.
func TestCheckSparesRequests(t *testing.T) {
	t.Parallel()
	r := open(t, folder(t.TempDir()), "one")
	r.mustTake(t)
	for range 3 {
		if err := r.Writer().Check(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if n := r.requests("check"); n != 0 || r.Writer().CheckInterval() != 10*time.Second {
		t.Errorf("%d requests, one each %s", n, r.Writer().CheckInterval())
	}
}

// steal puts another instance's record into the place of the lease's.
func steal(t *testing.T, dir string) {
	t.Helper()
	b, err := json.Marshal(map[string]any{"epoch": 7, "owner": "another", "ttl_seconds": 60, "host": "host b"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record(dir), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// When another instance has taken the lease, nothing may ever be written again, and a
// list that was begun under the lease is worth nothing: its transactions may be the
// other's.
func TestLost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := folder(dir)
	s.TTL = 6 * time.Second
	r := open(t, s, "one")
	r.mustTake(t)
	ctx := t.Context()
	if err := upload(ctx, r.Writer(), 1); err != nil {
		t.Fatal(err)
	}
	itr, err := r.Writer().LTXFiles(ctx, 0, 0, false)
	if err != nil {
		t.Fatal(err)
	}
	if !itr.Next() {
		t.Fatalf("it lists nothing: %v", itr.Err())
	}
	if err := itr.Err(); err != nil {
		t.Error(err)
	}

	steal(t, dir)
	const why = "another instance has taken this replica's lease: host b, epoch 7"
	if err := receive(t, r.lost); err.Error() != why || exit.Code(err) != exit.Held {
		t.Errorf("%v, exit code %d", err, exit.Code(err))
	}
	if err := r.Lost(); err == nil || err.Error() != why {
		t.Errorf("%v", err)
	}
	r.wantLease(t, "lost")
	_, listed := list(ctx, r.Writer())
	for what, err := range map[string]error{
		"write":              upload(ctx, r.Writer(), 2),
		"delete":             r.Writer().DeleteLTXFiles(ctx, []*ltx.FileInfo{{Level: 0, MinTXID: 1, MaxTXID: 1}}),
		"while":              r.While(ctx, func(context.Context) error { return nil }),
		"a list":             listed,
		"the list from then": itr.Err(),
		"closing it":         itr.Close(),
	} {
		var final interface{ Final() bool }
		if !errors.As(err, &final) || !final.Final() || err.Error() != "this instance may not write the replica: "+why {
			t.Errorf("%s: %v", what, err)
		}
	}
	wantReadOnly(t, r.Replica)
	if n, err := list(ctx, r); n != 1 || err != nil {
		t.Errorf("reading: %d files, %v", n, err)
	}
	if r.Release() {
		t.Error("another's lease was released")
	}
	if b, err := os.ReadFile(record(dir)); err != nil || !strings.Contains(string(b), `"another"`) {
		t.Errorf("the other's record: %s, %v", b, err)
	}
	if n := len(r.lost); n != 0 {
		t.Errorf("reported %d more times", n)
	}
	if said := r.log.String(); !strings.Contains(said, "another instance writes this replica: the app is stopped, and nothing is uploaded") {
		t.Errorf("the log: %s", said)
	}
}

// A lease that could not be renewed in time opens nothing either, though it may come
// back: the fence closes before another instance can have it.
func TestLapsed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := folder(dir)
	s.TTL = 6 * time.Second
	r := open(t, s, "one")
	r.mustTake(t)
	ctx := t.Context()
	if err := upload(ctx, r.Writer(), 1); err != nil {
		t.Fatal(err)
	}
	r.Abandon() // as if it stood still
	under := make(chan error, 1)
	_ = r.While(ctx, func(ctx context.Context) error {
		<-ctx.Done()
		under <- ctx.Err()
		return nil
	})
	if err := receive(t, under); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	_, listed := list(ctx, r.Writer())
	for what, err := range map[string]error{"write": upload(ctx, r.Writer(), 2), "list": listed} {
		var final interface{ Final() bool }
		if !errors.As(err, new(*lease.NotHeldError)) || errors.As(err, &final) {
			t.Errorf("%s: %v", what, err)
		}
	}
	r.wantLease(t, "lapsed")
}

// panicking is a store of which a write panics while it is armed.
type panicking struct {
	lease.Store
	armed    atomic.Bool
	panicked chan struct{} // has room for one
	wrote    chan struct{} // has room for one
}

func (p *panicking) Write(ctx context.Context, data []byte, ifTag string) (string, error) {
	if p.armed.Load() {
		note(p.panicked)
		panic("made up")
	}
	tag, err := p.Store.Write(ctx, data, ifTag)
	note(p.wrote)
	return tag, err
}

func note(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// A panic while the lease is renewed is logged, and ends neither the process nor the app.
// The lease lapses, and is held again when the renewals work again.
func TestRenewalThatPanics(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := folder(dir)
	s.TTL = 3 * time.Second
	r := open(t, s, "one")
	c, ok := r.right.(*claim)
	if !ok {
		t.Fatalf("the right is a %T", r.right)
	}
	store := &panicking{Store: leaseStore{r.store}, panicked: make(chan struct{}, 1), wrote: make(chan struct{}, 1)}
	c.lease = lease.New(lease.Config{Store: store, TTL: s.TTL, Host: "one", OnState: c.changed, Logger: c.cfg.Logger})
	r.mustTake(t)
	store.armed.Store(true)
	receive(t, store.panicked)
	receive(t, store.panicked) // once more: it goes on after the first
	if said := r.log.String(); !strings.Contains(said, "a bug in slasha-init or Litestream, please report it") || !strings.Contains(said, "made up") {
		t.Errorf("the log: %s", said)
	}
	_ = r.While(t.Context(), func(ctx context.Context) error {
		<-ctx.Done()
		return nil
	})
	r.wantLease(t, "lapsed")
	if err := upload(t.Context(), r.Writer(), 1); !errors.As(err, new(*lease.NotHeldError)) {
		t.Error(err)
	}
	for len(store.wrote) > 0 {
		<-store.wrote
	}
	store.armed.Store(false)
	receive(t, store.wrote)
	receive(t, store.wrote) // the one before counts by now
	if err := upload(t.Context(), r.Writer(), 1); err != nil {
		t.Error(err)
	}
	r.wantLease(t, "held")
	if !r.Release() {
		t.Error("it was not released")
	}
}

// A start waits for the instance that has the lease, and says for whom.
func TestTakeWaits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := open(t, folder(dir), "one")
	first.mustTake(t)

	impatient := folder(dir)
	impatient.Patience = 3 * time.Second
	third := open(t, impatient, "three")
	err := third.Take(t.Context(), nil)
	const held = "another instance holds this replica's lease: one, epoch 1"
	if err == nil || err.Error() != held || exit.Code(err) != exit.Held {
		t.Errorf("%v, exit code %d", err, exit.Code(err))
	}
	if said := receive(t, third.said); said != "waiting: "+held {
		t.Errorf("it says %q", said)
	}
	if n := len(third.said); n != 0 {
		t.Errorf("it says more: %q", <-third.said)
	}

	second := open(t, folder(dir), "two")
	took := make(chan error, 1)
	go func() { took <- second.Take(context.Background(), nil) }()
	if said := receive(t, second.said); said != "waiting: "+held {
		t.Errorf("it says %q", said)
	}
	if !first.Release() {
		t.Error("it was not released")
	}
	if err := receive(t, took); err != nil {
		t.Error(err)
	}
	if said := receive(t, second.said); said != "" {
		t.Errorf("when it goes on, it says %q", said)
	}
	if _, epoch, _ := second.Lease(); epoch != 2 {
		t.Errorf("epoch %d", epoch)
	}
	// Renewals and later news say nothing about a start.
	if n := len(second.said); n != 0 {
		t.Errorf("it says more: %q", <-second.said)
	}
}

// A stop ends the waiting, with its own reason.
func TestTakeIsStopped(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := open(t, folder(dir), "one")
	first.mustTake(t)
	for _, mode := range []Mode{Auto, Required} {
		s := folder(dir)
		s.Lease = mode
		second := open(t, s, "two")
		ctx, stop := context.WithCancelCause(t.Context())
		took := make(chan error, 1)
		go func() { took <- second.Take(ctx, nil) }()
		receive(t, second.said)
		stop(&exit.Stopped{Signal: syscall.SIGTERM})
		err := receive(t, took)
		if exit.Code(err) != 128+15 || len(second.said) != 0 {
			t.Errorf("%v, exit code %d", err, exit.Code(err))
		}
		if !second.Release() {
			t.Error("what was never taken can't be given back")
		}
	}
	first.wantLease(t, "held")
}

// If the replica does not answer, a start goes on without the lease after a few seconds,
// and LeaseMissing says so. If the lease is required, the start does not go on.
func TestTakeWhereNobodyAnswers(t *testing.T) {
	t.Parallel()
	endpoint, err := storage.ParseEndpoint("http://"+testbed.FreeAddr(t), "b")
	if err != nil {
		t.Fatal(err)
	}
	s := Settings{
		Storage:  storage.Config{Endpoint: endpoint, Bucket: "b", Prefix: "p", Region: "us-east-1", AccessKeyID: "made-up-id", SecretAccessKey: "made-up-secret"},
		Patience: 20 * time.Second,
	}
	r := open(t, s, "one")
	began := time.Now()
	if err := r.Take(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	const sentence = "the replica's lease is not held, so nothing is uploaded: "
	if err := r.LeaseMissing(); err == nil || !strings.HasPrefix(err.Error(), sentence) {
		t.Errorf("%v", err)
	}
	if said, temporary := r.Explain(upload(t.Context(), r.Writer(), 1)); !strings.HasPrefix(said, sentence+`bucket "b" `) || !temporary {
		t.Errorf("%q, temporary: %v", said, temporary)
	}
	if n := len(r.said); n != 0 {
		t.Errorf("it waits, and says %q", <-r.said)
	}

	s.Lease, s.Patience = Required, time.Second
	r = open(t, s, "one")
	err = r.Take(t.Context(), nil)
	const required = `the replica's lease can't be taken: bucket "b" `
	if err == nil || exit.Code(err) != exit.Held || !strings.HasPrefix(err.Error(), required) {
		t.Errorf("%v, exit code %d", err, exit.Code(err))
	}
	s.Patience = time.Minute
	r = open(t, s, "one")
	ctx, stop := context.WithCancel(t.Context())
	took := make(chan error, 1)
	go func() { took <- r.Take(ctx, nil) }()
	if said := receive(t, r.said); !strings.HasPrefix(said, required) {
		t.Errorf("it says %q", said)
	}
	stop()
	if err := receive(t, took); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// With a service without conditional writes, a replica works as with --lease=off, and
// fails if the lease is required.
func TestServiceWithoutConditions(t *testing.T) {
	t.Parallel()
	h := testbed.StartHeedless(t)
	endpoint, err := storage.ParseEndpoint(h.URL, "heedless")
	if err != nil {
		t.Fatal(err)
	}
	s := Settings{Storage: storage.Config{Endpoint: endpoint, Bucket: "heedless", Prefix: "app", AccessKeyID: "made-up-id", SecretAccessKey: "made-up-secret"}}
	r := open(t, s, "one")
	ctx := t.Context()
	if err := r.Take(ctx, nil); err != nil {
		t.Fatal(err)
	}
	r.wantLease(t, "unsupported")
	if err := errors.Join(r.LeaseMissing(), upload(ctx, r.Writer(), 1)); err != nil {
		t.Error(err)
	}
	if n, err := list(ctx, r.Writer()); n != 1 || err != nil {
		t.Errorf("%d files, %v", n, err)
	}
	for range 2 {
		if err := r.Writer().Check(ctx); err != nil {
			t.Error(err)
		}
	}
	if n := r.requests("check"); n != 1 {
		t.Errorf("%d requests for two checks in a row", n)
	}

	s.Lease = Required
	err = open(t, s, "two").Take(ctx, nil)
	if err == nil || exit.Code(err) != exit.Config || !strings.HasPrefix(err.Error(), "--lease required: the replica's service does not support conditional writes") {
		t.Errorf("%v, exit code %d", err, exit.Code(err))
	}
}

// A volume takes back what it held last, if it remembers. An instance that has waited
// for another one as long as it may is lost too.
func TestMemory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	memory := durable.NoteAt(filepath.Join(t.TempDir(), "lease.json"))
	s := folder(dir)
	s.TTL, s.Patience = time.Hour, 3*time.Second
	first := open(t, s, "one")
	if err := first.Take(t.Context(), &memory); err != nil {
		t.Fatal(err)
	}
	first.Abandon() // as if it had been killed
	if err := open(t, s, "elsewhere").Take(t.Context(), nil); exit.Code(err) != exit.Held {
		t.Errorf("without the memory: %v", err)
	}
	second := open(t, s, "one again")
	if err := second.Take(t.Context(), &memory); err != nil {
		t.Fatal(err)
	}
	if state, epoch, _ := second.Lease(); state != "held" || epoch != 2 {
		t.Errorf("%s, epoch %d", state, epoch)
	}
}

// An instance that takes over a volume begins at once, whichever has the lease. If
// another host keeps it, the app is stopped in the end.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	free := open(t, folder(dir), "one")
	free.TakeOver(t.Context(), nil)
	free.wantLease(t, "held")

	s := folder(dir)
	s.Patience = time.Second
	r := open(t, s, "two")
	began := time.Now()
	r.TakeOver(t.Context(), nil)
	if took := time.Since(began); took > 2*answering {
		t.Errorf("it took %s", took)
	}
	if n := len(r.said); n != 0 {
		t.Errorf("a start waits, it says: %q", <-r.said)
	}
	if err := upload(t.Context(), r.Writer(), 1); err == nil || !strings.Contains(err.Error(), "another instance holds this replica's lease: one, epoch 1") {
		t.Errorf("%v", err)
	}
	if err := receive(t, r.lost); exit.Code(err) != exit.Held {
		t.Errorf("%v, exit code %d", err, exit.Code(err))
	}
	if r.Lost() == nil || r.Release() {
		t.Error("it goes on")
	}
}

// An instance that only followed gives nothing back, because it never requested the lease.
func TestReleaseOfNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := open(t, folder(dir), "one")
	r.Abandon()
	if r.Release() {
		t.Error("a lease was released")
	}
	if _, err := os.Stat(record(dir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a record: %v", err)
	}
}

// If the lease can't be given back, that is logged, and a stop takes at most a second
// longer.
func TestReleaseThatFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := open(t, folder(dir), "one")
	r.mustTake(t)
	lock, err := os.Open(filepath.Dir(record(dir)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil { // as another writer has it
		t.Fatal(err)
	}
	began := time.Now()
	if r.Release() {
		t.Error("it was released")
	}
	if took := time.Since(began); took > 5*givingBack {
		t.Errorf("it took %s", took)
	}
	if said := r.log.String(); !strings.Contains(said, "the replica's lease was not given back: the next instance has to wait until it expires") {
		t.Errorf("the log: %s", said)
	}
}

// Sentences contain no secrets.
func TestExplainHidesSecrets(t *testing.T) {
	t.Parallel()
	s := folder(t.TempDir())
	s.Storage.AccessKeyID, s.Storage.SecretAccessKey = "an-id-that-is-secret", "a-key-that-is-secret"
	r := open(t, s, "one")
	err := errors.New("refused an-id-that-is-secret with a-key-that-is-secret")
	for _, err := range []error{err, &lease.NotHeldError{Err: err}} {
		if said, _ := r.Explain(err); strings.Contains(said, "that-is-secret") || !strings.Contains(said, "refused") {
			t.Errorf("%q", said)
		}
	}
}

// An uploader can send its file again: under the lease, the reader can still seek. It
// ends with the lease.
func TestUploadsKeepWhatRetriesNeed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := folder(dir)
	s.TTL = 6 * time.Second
	r := open(t, s, "one")
	r.mustTake(t)
	file := r.right.reader(bytes.NewReader([]byte("a file")))
	if _, ok := file.(io.ReadSeeker); !ok {
		t.Errorf("%T can't seek", file)
	}
	steal(t, dir)
	_ = receive(t, r.lost)
	if n, err := file.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("%d bytes after the end, %v", n, err)
	}
	var sent atomic.Int64
	_, err := r.Writer().WriteLTXFile(t.Context(), 0, 1, 1, readerFunc(func([]byte) (int, error) { sent.Add(1); return 0, io.EOF }))
	if err == nil || sent.Load() != 0 {
		t.Errorf("read %d times, %v", sent.Load(), err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
