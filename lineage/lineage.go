// Package lineage compares the database on a volume with its replica, before
// anything is uploaded.
//
// Litestream does not: a volume from before a move to another host silently
// becomes the newest version, and one that went on by itself is silently mixed
// with what somebody else uploaded. Both are found here by facts: the numbers of
// the transactions on either side, and the headers of those that both have.
//
// Nothing is changed, and the database file is not opened: a process that
// replicates it must not. See DESIGN's rule 1.
package lineage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
	"golang.org/x/sync/errgroup"
)

// Client is the replica to look at.
type Client interface {
	LTXFiles(ctx context.Context, level int, seek ltx.TXID, useMetadata bool) (ltx.FileIterator, error)
	OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error)
}

// Relation is how a database stands to its replica.
type Relation int

// The relations.
const (
	// Continues: the database is where the replica ends, or ahead of it on the
	// same line. Where the two have no transaction in common any more, being at or
	// ahead is taken for it.
	Continues Relation = iota
	// Empty: the replica has nothing in the format that is compared.
	Empty
	// Behind: the replica goes on where the database ends.
	Behind
	// Diverged: both went on by themselves.
	Diverged
)

// Finding is the outcome of a comparison.
type Finding struct {
	Relation Relation
	Local    ltx.TXID // the newest that was captured here, or restored; 0 for none
	Replica  ltx.TXID // the newest in the replica, 0 for none
	Common   ltx.TXID // the newest that both are known to have; 0 when not known
	Unsent   int      // commits here that the replica does not have; only of what is Stale
}

// Stale reports whether the database must not be uploaded: the replica has
// something that it lacks.
func (f Finding) Stale() bool { return f.Relation == Behind || f.Relation == Diverged }

// String says in a sentence how the two stand, with both positions.
func (f Finding) String() string {
	var s string
	switch {
	case f.Relation == Empty:
		return "the replica is empty"
	case f.Relation == Continues:
		return fmt.Sprintf("the database, at transaction %s, continues the replica, at %s", f.Local, f.Replica)
	case f.Local == 0:
		s = fmt.Sprintf("the replica has transactions up to %s, and nothing beside the database says that it is one of them", f.Replica)
	case f.Relation == Diverged && f.Common > 0:
		s = fmt.Sprintf("the database, at transaction %s, and the replica, at %s, went on differently after %s", f.Local, f.Replica, f.Common)
	case f.Relation == Diverged:
		s = fmt.Sprintf("the database, at transaction %s, and the replica, at %s, are of different origin", f.Local, f.Replica)
	default:
		s = fmt.Sprintf("the database ends at transaction %s, and the replica goes on to %s: somebody else has written since", f.Local, f.Replica)
	}
	switch f.Unsent {
	case 0:
		return s
	case 1:
		return s + "; 1 transaction here is not in the replica"
	}
	return fmt.Sprintf("%s; %d transactions here are not in the replica", s, f.Unsent)
}

// Compare finds out how the database at the path stands to its replica. stateDir
// is where Adopt has noted what was restored. It costs one list of each level,
// and where both sides have a transaction in common the header of one file.
func Compare(ctx context.Context, client Client, dbPath, stateDir string) (Finding, error) {
	there, err := listReplica(ctx, client)
	if err != nil {
		return Finding{}, err
	}
	here, err := listLocal(dbPath)
	if err != nil {
		return Finding{}, err
	}
	f := Finding{Replica: there.newest, Local: here.newest()}
	if f.Replica == 0 {
		f.Relation = Empty
		return f, nil
	}
	if f.Local == 0 {
		if f.Local, err = adopted(dbPath, stateDir).reaches(ctx, client, there); err != nil {
			return Finding{}, err
		}
		f.Common = min(f.Local, f.Replica)
	} else if f.Common, err = common(ctx, client, here, there); err != nil {
		return Finding{}, err
	}
	// What both have by its number must be the same, where that can still be seen.
	shared := here.newestOf(there.small)
	switch {
	case shared > 0 && f.Common < shared:
		f.Relation = Diverged
	case f.Local < f.Replica:
		f.Relation = Behind
	}
	if f.Stale() {
		f.Unsent = here.after(max(f.Common, f.replicaEnd())) + commitsInWAL(dbPath, here)
	}
	return f, nil
}

// SizeAt returns the size that the database at the path had after a transaction,
// in bytes, if what was captured of that is still here.
func SizeAt(dbPath string, txid ltx.TXID) (size int64, ok bool) {
	here, err := listLocal(dbPath)
	if err != nil || !slices.Contains(here.txids, txid) {
		return 0, false
	}
	var h ltx.Header
	b, err := here.header(txid)
	if err != nil || h.UnmarshalBinary(b) != nil {
		return 0, false
	}
	return int64(h.Commit) * int64(h.PageSize), true
}

// replicaEnd is the last transaction here that is known to be in the replica
// because it goes further on the same line.
func (f Finding) replicaEnd() ltx.TXID {
	if f.Relation == Behind {
		return f.Local
	}
	return 0
}

// replica is what the replica has.
type replica struct {
	newest         ltx.TXID
	belowSnapshots ltx.TXID   // the newest of all other files
	small          []ltx.TXID // its L0 files, one transaction each, in order
}

func listReplica(ctx context.Context, client Client) (replica, error) {
	var levels [litestream.SnapshotLevel + 1]replica
	g, ctx := errgroup.WithContext(ctx)
	for level := range levels {
		g.Go(func() error {
			itr, err := client.LTXFiles(ctx, level, 0, false)
			if err != nil {
				return err
			}
			for itr.Next() {
				item := itr.Item()
				levels[level].newest = max(levels[level].newest, item.MaxTXID)
				levels[level].small = append(levels[level].small, item.MaxTXID)
			}
			return itr.Close()
		})
	}
	if err := g.Wait(); err != nil {
		return replica{}, fmt.Errorf("list replica: %w", err)
	}
	all := levels[0]
	for level, l := range levels {
		all.newest = max(all.newest, l.newest)
		if level < litestream.SnapshotLevel {
			all.belowSnapshots = max(all.belowSnapshots, l.newest)
		}
	}
	slices.Sort(all.small)
	return all, nil
}

// local is what was captured here: the L0 files in Litestream's folder.
type local struct {
	dir   string
	txids []ltx.TXID // in order
	from  ltx.TXID   // what the first one continues, noted by the replicator; or 0
}

func listLocal(dbPath string) (local, error) {
	dir, name := filepath.Split(dbPath)
	l := local{dir: filepath.Join(dir, "."+name+litestream.MetaDirSuffix, "ltx", "0")}
	entries, err := os.ReadDir(l.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return l, fmt.Errorf("look at what was captured: %w", err)
	}
	for _, e := range entries {
		if _, txid, err := ltx.ParseFilename(e.Name()); err == nil && strings.HasSuffix(e.Name(), ".ltx") {
			l.txids = append(l.txids, txid)
		}
	}
	slices.Sort(l.txids)
	if len(l.txids) > 0 && l.isBaseline(l.txids[0]) {
		l.from, l.txids = l.txids[0], l.txids[1:]
	}
	return l, nil
}

// isBaseline reports whether a file holds no transaction, but says which one of
// the replica the next is to follow: the replicator puts it there before its first
// capture. It comes from no WAL, so it has no salts.
func (l local) isBaseline(txid ltx.TXID) bool {
	var h ltx.Header
	b, err := l.header(txid)
	return err == nil && h.UnmarshalBinary(b) == nil && h.WALSalt1 == 0 && h.WALSalt2 == 0
}

func (l local) newest() ltx.TXID {
	if len(l.txids) == 0 {
		return l.from
	}
	return l.txids[len(l.txids)-1]
}

// newestOf returns the newest transaction that is in both, or 0.
func (l local) newestOf(there []ltx.TXID) ltx.TXID {
	for _, txid := range slices.Backward(l.txids) {
		if _, ok := slices.BinarySearch(there, txid); ok {
			return txid
		}
	}
	return 0
}

// after counts the files after a transaction.
func (l local) after(txid ltx.TXID) int {
	i, _ := slices.BinarySearch(l.txids, txid+1)
	return len(l.txids) - i
}

// header reads the header of a captured transaction.
func (l local) header(txid ltx.TXID) ([]byte, error) {
	f, err := os.Open(filepath.Join(l.dir, ltx.FormatFilename(txid, txid)))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return readHeader(f)
}

func readHeader(r io.Reader) ([]byte, error) {
	b := make([]byte, ltx.HeaderSize)
	_, err := io.ReadFull(r, b)
	return b, err
}

// mostCompared bounds how many files are compared in search of the fork. Only the
// words of the message depend on it.
const mostCompared = 16

// common returns the newest transaction whose file is the same on both sides, or
// 0. A header says so: besides the time in milliseconds it has the salts and the
// place in the WAL that the transaction came from.
func common(ctx context.Context, client Client, here local, there replica) (ltx.TXID, error) {
	small := there.small
	for range mostCompared {
		txid := here.newestOf(small)
		if txid == 0 {
			return 0, nil
		}
		same, err := sameFile(ctx, client, here, txid)
		if err != nil {
			return 0, err
		}
		if same {
			return txid, nil
		}
		i, _ := slices.BinarySearch(small, txid)
		small = small[:i]
	}
	return 0, nil
}

func sameFile(ctx context.Context, client Client, here local, txid ltx.TXID) (bool, error) {
	ours, err := here.header(txid)
	if err != nil {
		return false, fmt.Errorf("look at what was captured: %w", err)
	}
	theirs, err := headerThere(ctx, client, txid)
	return bytes.Equal(ours, theirs), err
}

// headerThere reads the header of a transaction in the replica, or less where the
// file is shorter.
func headerThere(ctx context.Context, client Client, txid ltx.TXID) ([]byte, error) {
	rc, err := client.OpenLTXFile(ctx, 0, txid, txid, 0, ltx.HeaderSize)
	if err != nil {
		return nil, fmt.Errorf("look at transaction %s in the replica: %w", txid, err)
	}
	defer func() { _ = rc.Close() }()
	b, err := readHeader(rc)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("look at transaction %s in the replica: %w", txid, err)
	}
	return b, nil
}
