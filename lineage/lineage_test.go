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

	"github.com/slashacom/slasha-init/internal/durable"
)

// write puts a file of transactions where Litestream would. salt distinguishes lines;
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

// lineOf returns the Line of app.db in dir, whose notes lie there too, with the replica
// in its folder bucket.
func lineOf(dir string) *Line {
	return New(Config{
		DBPath:  filepath.Join(dir, "app.db"),
		Client:  file.NewReplicaClient(filepath.Join(dir, "bucket")),
		Adopted: durable.NoteAt(filepath.Join(dir, "adopted.json")),
		NewLine: durable.NoteAt(filepath.Join(dir, "new-line")),
	})
}

// captured is where Litestream keeps what it captured of app.db in dir.
func captured(dir string) string { return filepath.Join(dir, ".app.db-litestream") }

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
			l, db := lineOf(dir), filepath.Join(dir, "app.db")
			if err := os.WriteFile(db, []byte("a database"), 0o600); err != nil {
				t.Fatal(err)
			}
			if c.adopted != 0 {
				if err := l.Adopt(db, c.adopted); err != nil {
					t.Fatal(err)
				}
			}
			place(t, captured(dir), c.here)
			place(t, filepath.Join(dir, "bucket"), c.there)
			got, err := l.Compare(t.Context())
			if err != nil || got != c.want {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
			if got.Stale() && !strings.Contains(got.String(), got.Replica.String()) {
				t.Errorf("no position in %q", got)
			}
		})
	}
}

// A database whose captured transactions were dropped goes on from the one that was
// acknowledged. Of those after it, the replica may have got some whose answer was lost:
// they count as ours if their headers are the same.
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
			l := lineOf(dir)
			if err := os.WriteFile(l.cfg.DBPath, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			place(t, captured(dir), small(4, 9, 7))
			place(t, filepath.Join(dir, "bucket"), c.there)
			l.Uploaded(c.acked)
			l.Tried(c.snapshot)
			if err := l.Drop(); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(captured(dir)); err != nil {
				t.Fatal(err)
			}
			got, err := lineOf(dir).Compare(t.Context()) // by the note alone
			if err != nil || got.Stale() != c.stale {
				t.Errorf("%s, %v", got, err)
			}
		})
	}
}

// The note is about one file, and not about any other that has its name later.
func TestAdoptionIsOfAFile(t *testing.T) {
	dir := t.TempDir()
	scratch, db := filepath.Join(dir, "scratch"), filepath.Join(dir, "app.db")
	for _, path := range []string{scratch, db} {
		if err := os.WriteFile(path, []byte(path), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l := lineOf(dir)
	if err := l.Adopt(scratch, 5); err != nil {
		t.Fatal(err)
	}
	if got := l.adopted().TXID; got != 0 {
		t.Errorf("the database that is still there is taken for what was restored: %s", got)
	}
	if err := os.Rename(scratch, db); err != nil {
		t.Fatal(err)
	}
	if got := l.adopted().TXID; got != 5 {
		t.Errorf("adopted %s, not 5", got)
	}
	if err := os.WriteFile(l.cfg.Adopted.Path(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := l.adopted().TXID; got != 0 {
		t.Errorf("a torn note says %s", got)
	}
}

// A restore that is never moved into place changes nothing that is known of the
// database that stays, however often it is tried.
func TestAdoptionOfWhatStays(t *testing.T) {
	dir := t.TempDir()
	l, db := lineOf(dir), filepath.Join(dir, "app.db")
	for _, path := range []string{db, db + "1", db + "2"} {
		if err := os.WriteFile(path, []byte(path), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range []struct {
		file string
		txid ltx.TXID
	}{{db, 3}, {db + "1", 4}, {db + "2", 5}} {
		if err := l.Adopt(a.file, a.txid); err != nil {
			t.Fatal(err)
		}
		if got := l.adopted().TXID; got != 3 {
			t.Errorf("after a restore to %s the database stands at %s, not 3", a.file, got)
		}
	}
	if err := os.Rename(db+"2", db); err != nil {
		t.Fatal(err)
	}
	if got := l.adopted().TXID; got != 5 {
		t.Errorf("in place, it stands at %s, not 5", got)
	}
}

// Commits in the WAL that were not captured count. Those of an earlier WAL in the same
// file do not.
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
		if err := os.RemoveAll(captured(dir)); err != nil {
			t.Fatal(err)
		}
		place(t, captured(dir), c.here)
		l, err := listLocal(db)
		if err != nil {
			t.Fatal(err)
		}
		if got := commitsInWAL(db, l); got != c.want {
			t.Errorf("%v: %d commits, not %d", c.here, got, c.want)
		}
	}
}
