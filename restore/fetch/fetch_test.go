package fetch

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
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
	for seed := range uint64(60) {
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
