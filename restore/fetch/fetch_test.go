package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/benbjohnson/litestream/file"
	"github.com/superfly/ltx"
)

// history is a replica that was written as a random application would, and
// compacted at random.
type history struct {
	*file.ReplicaClient
	files []*ltx.FileInfo
}

// write makes a history of so many transactions.
func write(t testing.TB, random *rand.Rand, pageSize uint32, transactions int) *history {
	t.Helper()
	h := &history{ReplicaClient: file.NewReplicaClient(t.TempDir())}
	pages := make(map[uint32][]byte)
	commit := uint32(0)
	lock := ltx.LockPgno(pageSize)
	fill := func(pgno uint32) {
		b := make([]byte, pageSize)
		for i := range b[:random.IntN(int(pageSize))] { // some of it packs well
			b[i] = byte(random.Uint32())
		}
		pages[pgno] = b
	}
	var level0 []*ltx.FileInfo
	for txid := ltx.TXID(1); txid <= ltx.TXID(transactions); txid++ {
		was := commit
		switch random.IntN(6) {
		case 0:
			commit = max(1, commit-min(commit, random.Uint32N(20)))
		case 1, 2:
			commit += random.Uint32N(20)
		}
		commit = max(commit, 1)
		var changed []uint32
		for pgno := uint32(1); pgno <= commit; pgno++ {
			if txid == 1 || pgno > was || random.IntN(int(commit)) < 3 {
				changed = append(changed, pgno)
				fill(pgno)
			}
		}
		level0 = append(level0, h.put(t, 0, ltx.Header{
			Version: ltx.Version, Flags: ltx.HeaderFlagNoChecksum, PageSize: pageSize, Commit: commit,
			MinTXID: txid, MaxTXID: txid, Timestamp: int64(txid) * 1000,
		}, changed, pages))
		if random.IntN(8) == 0 {
			from := random.IntN(len(level0))
			h.compact(t, 1+random.IntN(3), level0[from:])
		}
		if random.IntN(20) == 0 {
			var all []uint32
			for pgno := uint32(1); pgno <= commit; pgno++ {
				if pgno != lock {
					all = append(all, pgno)
				}
			}
			h.put(t, litestream.SnapshotLevel, ltx.Header{
				Version: ltx.Version, Flags: ltx.HeaderFlagNoChecksum, PageSize: pageSize, Commit: commit,
				MinTXID: 1, MaxTXID: txid, Timestamp: int64(txid) * 1000,
			}, all, pages)
		}
	}
	var err error
	h.files, err = litestream.CalcRestorePlan(t.Context(), h, 0, time.Time{}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *history) put(t testing.TB, level int, header ltx.Header, pgnos []uint32, pages map[uint32][]byte) *ltx.FileInfo {
	t.Helper()
	var b bytes.Buffer
	enc, err := ltx.NewEncoder(&b)
	if err != nil {
		t.Fatal(err)
	}
	err = enc.EncodeHeader(header)
	for _, pgno := range pgnos {
		if err == nil {
			err = enc.EncodePage(ltx.PageHeader{Pgno: pgno}, pages[pgno])
		}
	}
	if err = errors.Join(err, enc.Close()); err != nil {
		t.Fatal(err)
	}
	info, err := h.WriteLTXFile(t.Context(), level, header.MinTXID, header.MaxTXID, &b)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func (h *history) compact(t testing.TB, level int, infos []*ltx.FileInfo) {
	t.Helper()
	var readers []io.Reader
	for _, f := range infos {
		rc, err := h.OpenLTXFile(t.Context(), f.Level, f.MinTXID, f.MaxTXID, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rc.Close() }()
		readers = append(readers, rc)
	}
	var b bytes.Buffer
	c, err := ltx.NewCompactor(&b, readers)
	if err == nil {
		c.HeaderFlags = ltx.HeaderFlagNoChecksum
		err = c.Compact(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.WriteLTXFile(t.Context(), level, infos[0].MinTXID, infos[len(infos)-1].MaxTXID, &b); err != nil {
		t.Fatal(err)
	}
}

// theirs restores with Litestream's own code.
func (h *history) theirs(t testing.TB) []byte {
	t.Helper()
	opt := litestream.NewRestoreOptions()
	opt.OutputPath = filepath.Join(t.TempDir(), "theirs.db")
	if err := litestream.NewReplicaWithClient(nil, h).Restore(t.Context(), opt); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(opt.OutputPath)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ours restores files with the code of this package.
func ours(t testing.TB, src Source, files []*ltx.FileInfo, opt Options) ([]byte, error) {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "ours.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	p, err := Open(t.Context(), src, files, opt)
	if err == nil {
		err = p.Write(t.Context(), out)
	}
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b, nil
}

var quiet = slog.New(slog.DiscardHandler)

// What comes out is byte for byte what Litestream's own restore gives, whatever
// the history, the page size and the size of the pieces.
func TestSameAsLitestream(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 7)) //nolint:gosec // not for secrets
			pageSize := uint32(512) << random.IntN(8)
			h := write(t, random, pageSize, 1+random.IntN(60))
			want := h.theirs(t)
			for _, piece := range []int64{0, 1, 3000, 100_000} {
				got, err := ours(t, h, h.files, Options{piece: piece})
				if err != nil {
					t.Fatalf("pieces of %d: %v", piece, err)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("pieces of %d: another database", piece)
				}
			}
		})
	}
}

// faulty is a source whose every request goes wrong in some way, n times for each
// place in a file.
type faulty struct {
	Source
	random *rand.Rand
	mu     sync.Mutex
	failed map[string]int
	times  int
}

var errAway = errors.New("away")

func (f *faulty) OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := fmt.Sprint(level, minTXID, maxTXID, offset, size)
	rc, err := f.Source.OpenLTXFile(ctx, level, minTXID, maxTXID, offset, size)
	if err != nil || f.failed[key] >= f.times {
		return rc, err
	}
	f.failed[key]++
	whole, err := io.ReadAll(rc)
	_ = rc.Close()
	if err != nil {
		return nil, err
	}
	some := bytes.NewReader(whole[:f.random.IntN(len(whole))])
	switch f.random.IntN(4) {
	case 0:
		return nil, errAway
	case 3:
		return io.NopCloser(io.MultiReader(some, iotest.ErrReader(io.ErrUnexpectedEOF))), nil // a connection is cut
	case 1:
		return io.NopCloser(some), nil // ends early
	default:
		return io.NopCloser(io.MultiReader(some, iotest.ErrReader(errAway))), nil
	}
}

// Requests that fail are made again for what is left, a few times.
func TestFailingRequests(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 3)) //nolint:gosec // not for secrets
	h := write(t, random, 4096, 40)
	want := h.theirs(t)
	for _, piece := range []int64{2000, 1 << 20} {
		src := &faulty{Source: h, random: random, failed: make(map[string]int), times: 2}
		got, err := ours(t, src, h.files, Options{piece: piece, pause: time.Microsecond})
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("pieces of %d: %v", piece, err)
		}
		if len(src.failed) == 0 {
			t.Error("nothing failed: the test shows nothing")
		}
	}
	away := &faulty{Source: h, random: random, failed: make(map[string]int), times: 1000}
	if _, err := ours(t, away, h.files, Options{pause: time.Microsecond}); err == nil {
		t.Error("a source that never gives all is not an error")
	}
	give := Options{pause: time.Hour, GiveUp: func(err error) bool { return errors.Is(err, errAway) }}
	if _, err := ours(t, failing{errAway}, h.files, give); !errors.Is(err, errAway) {
		t.Errorf("%v, though there is no use in asking again", err)
	}
}

// failing is a source whose every answer ends with an error before it begins.
type failing struct{ err error }

func (f failing) OpenLTXFile(context.Context, int, ltx.TXID, ltx.TXID, int64, int64) (io.ReadCloser, error) {
	return io.NopCloser(iotest.ErrReader(f.err)), nil
}

// panicking is a source with a bug that shows after some requests.
type panicking struct {
	Source
	left *atomic.Int64
}

func (p panicking) OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	if p.left.Add(-1) < 0 {
		panic("a bug")
	}
	return p.Source.OpenLTXFile(ctx, level, minTXID, maxTXID, offset, size)
}

// A bug in any of the goroutines is a panic of the caller, who can recover it, with the
// stack of where it was.
func TestABugInAGoroutine(t *testing.T) {
	h := write(t, rand.New(rand.NewPCG(8, 8)), 512, 20) //nolint:gosec // not for secrets
	for _, piece := range []int64{1000, 1 << 20} {
		for after := range int64(3) {
			src := panicking{h, &atomic.Int64{}}
			src.left.Store(after)
			func() {
				defer func() {
					err, _ := recover().(error)
					if err == nil || !strings.Contains(err.Error(), "a bug, in\n") || !strings.Contains(err.Error(), "panicking.OpenLTXFile") {
						t.Errorf("pieces of %d, request %d: %v", piece, after, err)
					}
				}()
				_, _ = ours(t, src, h.files, Options{piece: piece})
			}()
		}
	}
}

// A bad line says nothing about the file.
func TestACutConnectionIsNoDamage(t *testing.T) {
	h := write(t, rand.New(rand.NewPCG(6, 6)), 512, 3) //nolint:gosec // not for secrets
	_, err := ours(t, failing{io.ErrUnexpectedEOF}, h.files, Options{pause: time.Microsecond})
	var damaged *DamagedError
	if !errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &damaged) {
		t.Error(err)
	}
}

// The error distinguishes a file that is gone, one that is damaged and one of another
// kind, and names it.
func TestWhatIsWrong(t *testing.T) {
	random := rand.New(rand.NewPCG(4, 4)) //nolint:gosec // not for secrets
	h := write(t, random, 1024, 30)
	for _, piece := range []int64{1, 1 << 20} {
		for _, f := range needed(h.files) {
			path := h.LTXFilePath(f.Level, f.MinTXID, f.MaxTXID)
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			at := random.IntN(len(whole))
			broken := bytes.Clone(whole)
			broken[at] ^= 0x10
			if err := os.WriteFile(path, broken, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = ours(t, h, h.files, Options{piece: piece, pause: time.Microsecond})
			var damaged *DamagedError
			if !errors.As(err, &damaged) && !errors.Is(err, ErrFormat) {
				t.Errorf("%s flipped at %d: %v", Name(f), at, err)
			} else if !strings.Contains(err.Error(), Name(f)) {
				t.Errorf("%s flipped at %d: the error names another: %v", Name(f), at, err)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			_, err = ours(t, h, h.files, Options{piece: piece})
			var gone *VanishedError
			if !errors.As(err, &gone) || gone.File != f || !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s removed: %v", Name(f), err)
			}
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := ours(t, h, h.files, Options{}); err != nil {
		t.Errorf("with all as it was: %v", err)
	}
}

// More files than there are ranks are restored in several runs.
func TestManyFiles(t *testing.T) {
	h := &history{ReplicaClient: file.NewReplicaClient(t.TempDir())}
	j := &job{src: h, opt: Options{piece: 1 << 20}}
	pageSize := uint32(512)
	page := func(b byte) map[uint32][]byte {
		return map[uint32][]byte{1: bytes.Repeat([]byte{b}, int(pageSize)), 2: bytes.Repeat([]byte{b}, int(pageSize))}
	}
	var files []*ltx.FileInfo
	for txid := ltx.TXID(1); txid <= 3; txid++ {
		pgnos := []uint32{1, 2}[:min(2, 4-txid)] // the last has only the first page
		files = append(files, h.put(t, 0, ltx.Header{
			Version: ltx.Version, Flags: ltx.HeaderFlagNoChecksum, PageSize: pageSize, Commit: 2, MinTXID: txid, MaxTXID: txid, Timestamp: 1,
		}, pgnos, page(byte(txid))))
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "out.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	j.pages = newPages(out, pageSize, 2)
	for run := range slices.Chunk(files, 1) { // as if a run had room for one
		if err := j.run(t.Context(), run); err != nil {
			t.Fatal(err)
		}
		j.pages.age()
	}
	if err := j.pages.complete(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(out.Name()); err != nil || b[0] != 3 || b[pageSize] != 2 {
		t.Errorf("pages of %d and %d, want 3 and 2; %v", b[0], b[pageSize], err)
	}
}

// one is a replica of one file.
type one struct{ content []byte }

func (o one) OpenLTXFile(_ context.Context, _ int, _, _ ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(o.content[offset : offset+size])), nil
}

// Whatever is in a file of the bucket: no panic, no allocation beyond its own
// size, and where we take it, Litestream's decoder takes it too and gives the same.
func FuzzFile(f *testing.F) {
	random := rand.New(rand.NewPCG(5, 5)) //nolint:gosec // not for secrets
	h := write(f, random, 512, 1)
	seed, err := os.ReadFile(h.LTXFilePath(0, 1, 1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed, false)
	f.Add(seed, true)
	f.Fuzz(func(t *testing.T, content []byte, large bool) {
		opt := Options{piece: 1 << 20, Workers: 2, pause: time.Nanosecond}
		if large {
			opt.piece = 1
		}
		info := &ltx.FileInfo{MinTXID: 1, MaxTXID: 1, Size: int64(len(content))}
		got, err := ours(t, one{content}, []*ltx.FileInfo{info}, opt)
		if err != nil {
			return
		}
		var want bytes.Buffer
		if err := ltx.NewDecoder(bytes.NewReader(content)).DecodeDatabaseTo(&want); err != nil || !bytes.Equal(got, want.Bytes()) {
			t.Errorf("taken, and Litestream says %v", err)
		}
	})
}
