package replicate

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

// breakOff makes Litestream begin with a full snapshot, whatever the replica's
// newest file says. Without it, Litestream would fetch that file as the point to
// continue from; and one that was captured while the app replaced its database
// has the new WAL's salts, so it would pass for a continuation.
//
// In its place we put a local file with the same TXID, whose header stands at the
// beginning of a WAL that does not exist. See litestream.DB's
// checkDatabaseBehindReplica, which fetches only when the replica is ahead, and
// verify, which takes a snapshot when the salts differ there. The file is never
// uploaded: the replica has that TXID. Call it before the database's first Sync.
func breakOff(ctx context.Context, db *litestream.DB) error {
	newest, err := db.Replica.MaxLTXFileInfo(ctx, 0)
	if err != nil {
		return fmt.Errorf("list replica: %w", err)
	}
	if newest.MaxTXID == 0 {
		return nil // an empty replica begins with a snapshot anyway
	}
	const pageSize = 4096
	path := db.LTXPath(0, newest.MaxTXID, newest.MaxTXID)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("begin anew: %w", err)
	}
	f, err := os.OpenFile(path+".tmp", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("begin anew: %w", err)
	}
	defer func() { _ = f.Close() }()
	enc, err := ltx.NewEncoder(f)
	if err != nil {
		return fmt.Errorf("begin anew: %w", err)
	}
	if err := enc.EncodeHeader(ltx.Header{
		Version: ltx.Version, Flags: ltx.HeaderFlagNoChecksum, PageSize: pageSize, Commit: 1,
		MinTXID: newest.MaxTXID, MaxTXID: newest.MaxTXID,
		WALOffset: litestream.WALHeaderSize,
	}); err != nil {
		return fmt.Errorf("begin anew: %w", err)
	}
	if err := enc.EncodePage(ltx.PageHeader{Pgno: 1}, make([]byte, pageSize)); err != nil {
		return fmt.Errorf("begin anew: %w", err)
	}
	if err := enc.Close(); err != nil {
		return fmt.Errorf("begin anew: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("begin anew: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("begin anew: %w", err)
	}
	return nil
}
