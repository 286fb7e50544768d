package lineage

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/benbjohnson/litestream"
	"github.com/benbjohnson/litestream/file"
	"github.com/superfly/ltx"
)

// write puts a file of transactions where Litestream would. salt tells lines apart;
// 0 makes a baseline.
func write(t *testing.T, path string, salt uint32) {
	t.Helper()
	minTXID, maxTXID, err := ltx.ParseFilename(filepath.Base(path))
	if err != nil {
		t.Fatal(err)
	}
	h := ltx.Header{
		Version: ltx.Version, Flags: ltx.HeaderFlagNoChecksum, PageSize: 4096, Commit: 1, MinTXID: minTXID, MaxTXID: maxTXID,
		Timestamp: 1_700_000_000_000 + int64(maxTXID), WALOffset: litestream.WALHeaderSize, WALSize: int64(maxTXID) * 4120,
		WALSalt1: salt, WALSalt2: salt,
	}
	var b bytes.Buffer
	enc, err := ltx.NewEncoder(&b)
	if err != nil {
		t.Fatal(err)
	}
	if err := enc.EncodeHeader(h); err != nil {
		t.Fatal(err)
	}
	if err := enc.EncodePage(ltx.PageHeader{Pgno: 1}, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	if err := enc.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// span is one file: a level, its transactions, and which line it is of.
type span struct {
	level    int
	min, max ltx.TXID
	salt     uint32
}

func small(from, to ltx.TXID, salt uint32) (spans []span) {
	for txid := from; txid <= to; txid++ {
		spans = append(spans, span{0, txid, txid, salt})
	}
	return spans
}

func place(t *testing.T, dir string, spans []span) {
	t.Helper()
	for _, s := range spans {
		write(t, filepath.Join(dir, "ltx", string(rune('0'+s.level)), ltx.FormatFilename(s.min, s.max)), s.salt)
	}
}

func TestCompare(t *testing.T) {
	join := func(lists ...[]span) (all []span) {
		for _, l := range lists {
			all = append(all, l...)
		}
		return all
	}
	for name, c := range map[string]struct {
		here, there []span
		adopted     ltx.TXID
		want        Finding
	}{
		"nothing anywhere":     {nil, nil, 0, Finding{Relation: Empty}},
		"a first upload":       {small(1, 5, 7), nil, 0, Finding{Relation: Empty, Local: 5}},
		"equal":                {small(1, 5, 7), small(1, 5, 7), 0, Finding{Relation: Continues, Local: 5, Replica: 5, Common: 5}},
		"ahead":                {small(1, 9, 7), small(1, 5, 7), 0, Finding{Relation: Continues, Local: 9, Replica: 5, Common: 5}},
		"behind":               {small(1, 5, 7), small(1, 9, 7), 0, Finding{Relation: Behind, Local: 5, Replica: 9, Common: 5}},
		"behind, long ago":     {small(1, 5, 7), join([]span{{9, 1, 20, 0}}, small(18, 20, 7)), 0, Finding{Relation: Behind, Local: 5, Replica: 20}},
		"another line, equal":  {small(1, 5, 7), small(1, 5, 8), 0, Finding{Relation: Diverged, Local: 5, Replica: 5, Unsent: 5}},
		"a fork, ahead":        {join(small(1, 5, 7), small(6, 9, 7)), join(small(1, 5, 7), small(6, 7, 8)), 0, Finding{Relation: Diverged, Local: 9, Replica: 7, Common: 5, Unsent: 4}},
		"a fork, behind":       {join(small(1, 5, 7), small(6, 6, 7)), join(small(1, 5, 7), small(6, 9, 8)), 0, Finding{Relation: Diverged, Local: 6, Replica: 9, Common: 5, Unsent: 1}},
		"no file in common":    {small(8, 9, 7), []span{{9, 1, 5, 0}}, 0, Finding{Relation: Continues, Local: 9, Replica: 5}},
		"never captured":       {nil, small(1, 5, 7), 0, Finding{Relation: Behind, Replica: 5}},
		"restored":             {nil, small(1, 5, 7), 5, Finding{Relation: Continues, Local: 5, Replica: 5, Common: 5}},
		"restored, left again": {nil, small(1, 9, 7), 5, Finding{Relation: Behind, Local: 5, Replica: 9, Common: 5}},
		"only level 9 left":    {nil, []span{{9, 1, 5, 0}}, 5, Finding{Relation: Continues, Local: 5, Replica: 5, Common: 5}},
		"a baseline":           {small(5, 5, 0), small(1, 5, 7), 0, Finding{Relation: Continues, Local: 5, Replica: 5}},
		"after a baseline":     {join(small(5, 5, 0), small(6, 6, 7)), small(1, 5, 7), 0, Finding{Relation: Continues, Local: 6, Replica: 5}},
		"an old baseline":      {small(5, 5, 0), small(1, 9, 7), 0, Finding{Relation: Behind, Local: 5, Replica: 9}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			db, state := filepath.Join(dir, "app.db"), filepath.Join(dir, "state")
			if err := os.Mkdir(state, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(db, []byte("a database"), 0o600); err != nil {
				t.Fatal(err)
			}
			if c.adopted != 0 {
				if err := Adopt(db, state, db, c.adopted); err != nil {
					t.Fatal(err)
				}
			}
			place(t, filepath.Join(dir, ".app.db-litestream"), c.here)
			bucket := filepath.Join(dir, "bucket")
			place(t, bucket, c.there)
			got, err := Compare(t.Context(), file.NewReplicaClient(bucket), db, state)
			if err != nil || got != c.want {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
			if got.Stale() && !strings.Contains(got.String(), got.Replica.String()) {
				t.Errorf("no position in %q", got)
			}
		})
	}
}

// What was dropped is known by the position that was acknowledged; the transaction
// that was on its way is ours if it is the very one.
func TestDrop(t *testing.T) {
	for name, c := range map[string]struct {
		acked    ltx.TXID
		snapshot ltx.TXID // that was tried
		there    []span
		stale    bool
	}{
		"as it was left":                          {5, 0, small(1, 5, 7), false},
		"one more, whose answer was lost":         {5, 0, small(1, 6, 7), false},
		"one more, of somebody else":              {5, 0, slices.Concat(small(1, 5, 7), small(6, 6, 8)), true},
		"several more, their answers lost":        {5, 0, small(1, 7, 7), false},
		"several more, of somebody else":          {5, 0, slices.Concat(small(1, 5, 7), small(6, 7, 8)), true},
		"more than was captured here":             {5, 0, small(1, 10, 7), true},
		"nothing acknowledged yet":                {0, 0, small(1, 5, 7), false},
		"a snapshot, its answer lost":             {5, 8, slices.Concat(small(1, 5, 7), []span{{9, 1, 8, 0}}), false},
		"a snapshot of somebody else":             {5, 0, slices.Concat(small(1, 5, 7), []span{{9, 1, 8, 0}}), true},
		"one that was tried, and somebody else's": {5, 8, slices.Concat(small(1, 5, 7), small(6, 6, 8), []span{{9, 1, 8, 0}}), true},
		"merged meanwhile":                        {5, 0, []span{{1, 1, 6, 0}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			db, bucket := filepath.Join(dir, "app.db"), filepath.Join(dir, "bucket")
			if err := os.WriteFile(db, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			captured := filepath.Join(dir, ".app.db-litestream")
			place(t, captured, small(4, 9, 7))
			place(t, bucket, c.there)
			if err := Drop(dir, db, c.acked, c.snapshot); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(captured); err != nil {
				t.Fatal(err)
			}
			got, err := Compare(t.Context(), file.NewReplicaClient(bucket), db, dir)
			if err != nil || got.Stale() != c.stale {
				t.Errorf("%s, %v", got, err)
			}
		})
	}
}

// What was adopted is a file, and not whatever has its name later.
func TestAdoptionIsOfAFile(t *testing.T) {
	dir := t.TempDir()
	scratch, db := filepath.Join(dir, "scratch"), filepath.Join(dir, "app.db")
	for _, path := range []string{scratch, db} {
		if err := os.WriteFile(path, []byte(path), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Adopt(filepath.Join(dir, "app.db"), dir, scratch, 5); err != nil {
		t.Fatal(err)
	}
	if got := adopted(db, dir).TXID; got != 0 {
		t.Errorf("the database that is still there is taken for what was restored: %s", got)
	}
	if err := os.Rename(scratch, db); err != nil {
		t.Fatal(err)
	}
	if got := adopted(db, dir).TXID; got != 5 {
		t.Errorf("adopted %s, not 5", got)
	}
	if err := os.WriteFile(adoptionFile(dir), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := adopted(db, dir).TXID; got != 0 {
		t.Errorf("a torn note says %s", got)
	}
}

// A restore that never gets into its place takes nothing from the database that
// stays, however often it is tried.
func TestAdoptionOfWhatStays(t *testing.T) {
	dir := t.TempDir()
	db := filepath.Join(dir, "app.db")
	for _, path := range []string{db, db + "1", db + "2"} {
		if err := os.WriteFile(path, []byte(path), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range []struct {
		file string
		txid ltx.TXID
	}{{db, 3}, {db + "1", 4}, {db + "2", 5}} {
		if err := Adopt(db, dir, a.file, a.txid); err != nil {
			t.Fatal(err)
		}
		if got := adopted(db, dir).TXID; got != 3 {
			t.Errorf("after a restore to %s the database stands at %s, not 3", a.file, got)
		}
	}
	if err := os.Rename(db+"2", db); err != nil {
		t.Fatal(err)
	}
	if got := adopted(db, dir).TXID; got != 5 {
		t.Errorf("in place, it stands at %s, not 5", got)
	}
}

// Commits in the WAL that were not captured count, those of an earlier WAL in the
// same file do not.
func TestCommitsInWAL(t *testing.T) {
	dir := t.TempDir()
	db := filepath.Join(dir, "app.db")
	head := make([]byte, litestream.WALHeaderSize)
	binary.BigEndian.PutUint32(head[8:], 4096)
	binary.BigEndian.PutUint32(head[16:], 7)
	binary.BigEndian.PutUint32(head[20:], 7)
	frame := func(size, salt uint32) []byte {
		f := make([]byte, litestream.WALFrameHeaderSize+4096)
		binary.BigEndian.PutUint32(f[4:], size)
		binary.BigEndian.PutUint32(f[8:], salt)
		binary.BigEndian.PutUint32(f[12:], salt)
		return f
	}
	wal := bytes.Join([][]byte{head, frame(1, 7), frame(0, 7), frame(2, 7), frame(3, 7), frame(4, 6)}, nil)
	if err := os.WriteFile(db+"-wal", wal, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		here []span
		want int
	}{
		{nil, 3},
		{small(1, 1, 7), 2}, // captured up to the first frame
		{small(1, 3, 7), 1},
		{small(1, 3, 5), 3}, // from an earlier WAL
	} {
		litestreamDir := filepath.Join(dir, ".app.db-litestream")
		if err := os.RemoveAll(litestreamDir); err != nil {
			t.Fatal(err)
		}
		place(t, litestreamDir, c.here)
		l, err := listLocal(db)
		if err != nil {
			t.Fatal(err)
		}
		if got := commitsInWAL(db, l); got != c.want {
			t.Errorf("%v: %d commits, not %d", c.here, got, c.want)
		}
	}
}
