package lineage

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/durable"
)

// adoption is the note that a file was made from the replica: until the first
// transaction after it has been captured, nothing else beside the database says
// where it stands.
type adoption struct {
	Device uint64   `json:"device"` // of the file, which keeps them when it is moved
	Inode  uint64   `json:"inode"`
	TXID   ltx.TXID `json:"txid"` // the newest that the replica had
	// After are the headers of the transactions after it, of which nobody knows
	// whether they got there: the answers to uploads can be lost.
	After [][]byte `json:"after,omitempty"`
	// Snapshot is the transaction of a snapshot of which the same is true, or 0.
	Snapshot ltx.TXID `json:"snapshot,omitempty"`
	// Instead is what was noted of the file that this one was to replace, in case
	// that it never did.
	Instead *adoption `json:"instead,omitempty"`
}

func adoptionFile(stateDir string) string { return filepath.Join(stateDir, "adopted.json") }

// Adopt notes, on the disk, that a file was restored from the replica when txid
// was its newest transaction, and is about to become the database: it goes on
// from there, also when it was restored to an earlier point in time. What is known
// of the file that is at the path now stays known.
func Adopt(dbPath, stateDir, file string, txid ltx.TXID) error {
	a := adoption{TXID: txid}
	if before := adopted(dbPath, stateDir); before.Inode != 0 {
		before.Instead = nil
		a.Instead = &before
	}
	return a.write(stateDir, file)
}

// mostAfter is how many of the transactions after the last acknowledged one may have
// got into the replica, each with its answer lost.
const mostAfter = 16

// Drop notes the same of a database whose captured transactions are about to be
// dropped: it goes on from acked, the newest that the replica has acknowledged, and
// from what it has of those after it. A snapshot whose upload was tried, or 0, may
// have got there too.
func Drop(stateDir, dbPath string, acked, snapshot ltx.TXID) error {
	a := adoption{TXID: acked, Snapshot: snapshot}
	here, err := listLocal(dbPath)
	if err != nil {
		return err
	}
	if acked == 0 {
		a.TXID = here.newest() // nothing better is known
	}
	for txid := a.TXID + 1; len(a.After) < mostAfter; txid++ {
		next, err := here.header(txid)
		if err != nil {
			break
		}
		a.After = append(a.After, next)
	}
	return a.write(stateDir, dbPath)
}

// reaches returns the newest of the replica's transactions that is known to be one
// that the database goes on from.
func (a adoption) reaches(ctx context.Context, client Client, there replica) (ltx.TXID, error) {
	at := a.TXID
	n := int64(there.belowSnapshots) - int64(a.TXID)
	if _, small := slices.BinarySearch(there.small, there.belowSnapshots); small && n > 0 && n <= int64(len(a.After)) {
		theirs, err := headerThere(ctx, client, there.belowSnapshots)
		if err != nil {
			return 0, err
		}
		if bytes.Equal(a.After[n-1], theirs) {
			at = there.belowSnapshots
		}
	}
	if there.newest == a.Snapshot && there.belowSnapshots <= at {
		at = max(at, a.Snapshot)
	}
	return at, nil
}

// write notes it, for the file as it is now.
func (a adoption) write(stateDir, file string) error {
	fi, err := os.Stat(file)
	if err != nil {
		return err
	}
	a.Device, a.Inode = identity(fi)
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(adoptionFile(stateDir), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("note what was restored: %w", err)
	}
	return nil
}

// adopted returns what was noted of the file that is at the path now.
func adopted(dbPath, stateDir string) (a adoption) {
	b, err := os.ReadFile(adoptionFile(stateDir))
	if err != nil || json.Unmarshal(b, &a) != nil {
		return adoption{}
	}
	fi, err := os.Stat(dbPath)
	if err != nil {
		return adoption{}
	}
	device, inode := identity(fi)
	for _, a := range []*adoption{&a, a.Instead} {
		if a != nil && device == a.Device && inode == a.Inode {
			return *a
		}
	}
	return adoption{}
}

func identity(fi os.FileInfo) (device, inode uint64) {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Dev), st.Ino //nolint:unconvert // a different type on other architectures
	}
	return 0, 0
}
