package lineage

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/disk"
	"github.com/slashacom/slasha-init/internal/durable"
)

// adoption is the note that a file goes on from the replica: until the first
// transaction after it has been captured, nothing else beside the database says where
// it stands.
type adoption struct {
	Device uint64   `json:"device"` // of the file, which keeps them when it is moved
	Inode  uint64   `json:"inode"`
	TXID   ltx.TXID `json:"txid"` // the newest that the replica had
	// After are the headers of the transactions after it that may have got there: the
	// answers to uploads can be lost.
	After [][]byte `json:"after,omitempty"`
	// Snapshot is the transaction of a snapshot that may have got there, or 0.
	Snapshot ltx.TXID `json:"snapshot,omitempty"`
	// Instead is the note of the file that this one was to replace, in case it never
	// did.
	Instead *adoption `json:"instead,omitempty"`
}

// Adopt notes, on the disk, that a file was restored from the replica when newest was
// its newest transaction, and is about to become the database: it goes on from there,
// also when it was restored to an earlier point in time. What is known of the file
// that is at the path now stays known.
func (l *Line) Adopt(file string, newest ltx.TXID) error {
	a := adoption{TXID: newest}
	if before := l.adopted(); before.Inode != 0 {
		before.Instead = nil
		a.Instead = &before
	}
	l.mu.Lock()
	l.continues, l.acked = newest, newest
	l.tried = 0 // a snapshot of another file
	l.mu.Unlock()
	return a.write(l.cfg.Adopted, file)
}

// mostAfter is how many of the transactions after the last acknowledged one may have
// got into the replica, each with its answer lost.
const mostAfter = 16

// Drop notes, on the disk, what the live database goes on from, before what was
// captured of it is dropped: from the newest transaction that the replica has
// acknowledged, and from what the replica has of those after it. A snapshot whose
// upload was tried may have got there too. After it, Admit compares again. After an
// error, nothing may be dropped.
func (l *Line) Drop() error {
	l.mu.Lock()
	acked, tried := max(l.acked, l.continues), l.tried
	l.mu.Unlock()
	a, err := l.goesOnFrom(acked, tried)
	if err != nil {
		return err
	}
	if err := a.write(l.cfg.Adopted, l.cfg.DBPath); err != nil {
		return err
	}
	l.Doubt()
	return nil
}

// goesOnFrom returns what there is to note of the live database, when the replica has
// acknowledged one transaction, and may have got a snapshot of another.
func (l *Line) goesOnFrom(acked, snapshot ltx.TXID) (adoption, error) {
	a := adoption{TXID: acked, Snapshot: snapshot}
	here, err := listLocal(l.cfg.DBPath)
	if err != nil {
		return adoption{}, err
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
	return a, nil //nolint:nilerr // what was captured ends there
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

// write writes the note, for a file as it is now.
func (a adoption) write(note durable.Note, file string) error {
	fi, err := os.Stat(file)
	if err != nil {
		return err
	}
	a.Device, a.Inode = disk.Identity(fi)
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	if err := note.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("note what was restored: %w", err)
	}
	return nil
}

// adopted returns what was noted of the file that is at the path now.
func (l *Line) adopted() (a adoption) {
	b, err := l.cfg.Adopted.Read()
	if err != nil || json.Unmarshal(b, &a) != nil {
		return adoption{}
	}
	fi, err := os.Stat(l.cfg.DBPath)
	if err != nil {
		return adoption{}
	}
	device, inode := disk.Identity(fi)
	for _, a := range []*adoption{&a, a.Instead} {
		if a != nil && device == a.Device && inode == a.Inode {
			return *a
		}
	}
	return adoption{}
}
