package lineage

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/wal"
)

// local is what was captured here: the L0 files in Litestream's folder.
type local struct {
	dir   string
	txids []ltx.TXID // in order
	from  ltx.TXID   // what the first one continues, if the replicator has noted it; or 0
}

func listLocal(dbPath string) (local, error) {
	l := local{dir: filepath.Join(wal.LitestreamDir(dbPath), "ltx", "0")}
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
	if len(l.txids) > 0 && wal.IsBaseline(l.path(l.txids[0])) {
		l.from, l.txids = l.txids[0], l.txids[1:]
	}
	return l, nil
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

// path returns where the file of a captured transaction is.
func (l local) path(txid ltx.TXID) string {
	return filepath.Join(l.dir, ltx.FormatFilename(txid, txid))
}

// header reads the header of a captured transaction, as it is: headers are compared
// and noted byte by byte.
func (l local) header(txid ltx.TXID) ([]byte, error) {
	f, err := os.Open(l.path(txid))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, ltx.HeaderSize)
	_, err = io.ReadFull(f, b)
	return b, err
}

// SizeAt returns the size in bytes that the database at the path had after a
// transaction. ok is false where the capture of that transaction is gone.
func SizeAt(dbPath string, txid ltx.TXID) (size int64, ok bool) {
	here, err := listLocal(dbPath)
	if err != nil || !slices.Contains(here.txids, txid) {
		return 0, false
	}
	h, err := wal.ReadLTX(here.path(txid))
	if err != nil {
		return 0, false
	}
	return int64(h.Commit) * int64(h.PageSize), true
}
