package replicate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/levels"
)

// breakOff makes Litestream begin with a full snapshot, as the transaction after
// the replica's newest of any level. Without it, Litestream would fetch the newest
// L0 file as the point to continue from; one that was captured while the app
// replaced its database has the new WAL's salts, so it would pass for a
// continuation. And where a lifecycle rule has deleted the L0 files, Litestream
// would count from 1 again, below the snapshots, and a restore would not see what
// is uploaded from then on.
//
// In its place we put a local file with the same TXID, whose header stands at the
// beginning of a WAL that does not exist. See litestream.DB's
// checkDatabaseBehindReplica, which fetches only when the replica is ahead, and
// verify, which takes a snapshot when the salts differ there. The file is never
// uploaded: the replica has that TXID. It must be gone before a compaction runs,
// which would prefer it to the replica's own.
//
// Call it before the database's first Sync. It returns the file's path, or "" where
// the replica is empty, which begins with a snapshot anyway.
func breakOff(ctx context.Context, db *litestream.DB) (path string, err error) {
	files, err := levels.List(ctx, db.Replica.Client, false)
	if err != nil {
		return "", fmt.Errorf("list replica: %w", err)
	}
	newest := levels.Newest(files[:]...).MaxTXID
	if newest == 0 {
		return "", nil
	}
	path = db.LTXPath(0, newest, newest)
	if err := writeBaseline(path, newest); err != nil {
		return "", fmt.Errorf("prepare a fresh snapshot: %w", err)
	}
	db.Replica.SetPos(ltx.Pos{TXID: newest})
	return path, nil
}

// writeBaseline writes the file. See wal.IsBaseline, which recognizes it.
func writeBaseline(path string, txid ltx.TXID) error {
	const pageSize = 4096
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	enc, err := ltx.NewEncoder(f)
	if err != nil {
		return err
	}
	if err := enc.EncodeHeader(ltx.Header{
		Version: ltx.Version, Flags: ltx.HeaderFlagNoChecksum, PageSize: pageSize, Commit: 1,
		MinTXID: txid, MaxTXID: txid,
		WALOffset: litestream.WALHeaderSize,
	}); err != nil {
		return err
	}
	if err := enc.EncodePage(ltx.PageHeader{Pgno: 1}, make([]byte, pageSize)); err != nil {
		return err
	}
	if err := errors.Join(enc.Close(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}
