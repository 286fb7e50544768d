package replica

import (
	"context"
	"errors"
	"io"
	"log/slog"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/replica/storage"
)

// readOnly has the methods of Litestream's clients (litestream.ReplicaClient and
// ReplicaClientV3). Those that read go to the storage as they are. Those that write fail,
// because only a Writer may.
type readOnly struct{ store *storage.Client }

// errReadOnly is a mistake in the program, and not in its use.
var errReadOnly = errors.New("replica: this client only reads")

// Type is the kind of client, for Litestream.
func (r readOnly) Type() string { return r.store.Type() }

// Init connects to the replica. Each other method does that itself.
func (r readOnly) Init(ctx context.Context) error { return r.store.Init(ctx) }

// SetLogger is for Litestream's own clients, and does nothing here.
func (r readOnly) SetLogger(l *slog.Logger) { r.store.SetLogger(l) }

// LTXFiles lists the files of one level, in the order of their transactions. The
// request is lazy: it is made, and can fail, while the iterator is read.
func (r readOnly) LTXFiles(ctx context.Context, level int, seek ltx.TXID, useMetadata bool) (ltx.FileIterator, error) {
	return r.store.LTXFiles(ctx, level, seek, useMetadata)
}

// OpenLTXFile opens one file, or size bytes of it from offset. The error is
// os.ErrNotExist where there is no such file. The caller closes the file.
func (r readOnly) OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	return r.store.OpenLTXFile(ctx, level, minTXID, maxTXID, offset, size)
}

// WriteLTXFile fails: see Writer.
func (readOnly) WriteLTXFile(context.Context, int, ltx.TXID, ltx.TXID, io.Reader) (*ltx.FileInfo, error) {
	return nil, errReadOnly
}

// DeleteLTXFiles fails: see Writer.
func (readOnly) DeleteLTXFiles(context.Context, []*ltx.FileInfo) error { return errReadOnly }

// DeleteAll fails, also for a Writer: nothing in this program ever deletes a replica.
func (readOnly) DeleteAll(context.Context) error {
	return errors.New("replica: deleting a whole replica is not supported")
}

// GenerationsV3 lists the generations of Litestream 0.3.
func (r readOnly) GenerationsV3(ctx context.Context) ([]string, error) {
	return r.store.GenerationsV3(ctx)
}

// SnapshotsV3 lists the snapshots of a generation.
func (r readOnly) SnapshotsV3(ctx context.Context, generation string) ([]litestream.SnapshotInfoV3, error) {
	return r.store.SnapshotsV3(ctx, generation)
}

// WALSegmentsV3 lists the WAL segments of a generation.
func (r readOnly) WALSegmentsV3(ctx context.Context, generation string) ([]litestream.WALSegmentInfoV3, error) {
	return r.store.WALSegmentsV3(ctx, generation)
}

// OpenSnapshotV3 opens a snapshot, decompressed. The caller closes it.
func (r readOnly) OpenSnapshotV3(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
	return r.store.OpenSnapshotV3(ctx, generation, index)
}

// OpenWALSegmentV3 opens a WAL segment, decompressed. The caller closes it.
func (r readOnly) OpenWALSegmentV3(ctx context.Context, generation string, index int, offset int64) (io.ReadCloser, error) {
	return r.store.OpenWALSegmentV3(ctx, generation, index, offset)
}
