package storage

import (
	"cmp"
	"context"
	"io"
	"slices"

	"github.com/benbjohnson/litestream"
	"github.com/pierrec/lz4/v4"
)

// Litestream 0.3 kept a replica in generations, each with snapshots and WAL segments that
// LZ4 packs. Litestream finds these methods by a type assertion, so a wrapper of Client
// that hides them makes such a replica look empty.

// GenerationsV3 lists the generations, ordered by name.
func (c *Client) GenerationsV3(ctx context.Context) ([]string, error) {
	all, err := c.all(ctx, litestream.GenerationsPathV3(""), folders)
	var generations []string
	for _, e := range all {
		if litestream.IsGenerationIDV3(e.name) {
			generations = append(generations, e.name)
		}
	}
	slices.Sort(generations)
	return generations, err
}

// SnapshotsV3 lists the snapshots of a generation, ordered by index.
func (c *Client) SnapshotsV3(ctx context.Context, generation string) ([]litestream.SnapshotInfoV3, error) {
	all, err := c.all(ctx, litestream.SnapshotsPathV3("", generation), files)
	var snapshots []litestream.SnapshotInfoV3
	for _, e := range all {
		if index, err := litestream.ParseSnapshotFilenameV3(e.name); err == nil {
			snapshots = append(snapshots, litestream.SnapshotInfoV3{Generation: generation, Index: index, Size: e.size, CreatedAt: e.at.UTC()})
		}
	}
	slices.SortFunc(snapshots, func(a, b litestream.SnapshotInfoV3) int { return cmp.Compare(a.Index, b.Index) })
	return snapshots, err
}

// WALSegmentsV3 lists the WAL segments of a generation, ordered by index and offset.
func (c *Client) WALSegmentsV3(ctx context.Context, generation string) ([]litestream.WALSegmentInfoV3, error) {
	all, err := c.all(ctx, litestream.WALPathV3("", generation), files)
	var segments []litestream.WALSegmentInfoV3
	for _, e := range all {
		if index, offset, err := litestream.ParseWALSegmentFilenameV3(e.name); err == nil {
			segments = append(segments, litestream.WALSegmentInfoV3{
				Generation: generation, Index: index, Offset: offset, Size: e.size, CreatedAt: e.at.UTC(),
			})
		}
	}
	slices.SortFunc(segments, func(a, b litestream.WALSegmentInfoV3) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.Offset, b.Offset))
	})
	return segments, err
}

// OpenSnapshotV3 opens a snapshot, unpacked.
func (c *Client) OpenSnapshotV3(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
	return c.unpack(ctx, litestream.SnapshotPathV3("", generation, index))
}

// OpenWALSegmentV3 opens a WAL segment, unpacked.
func (c *Client) OpenWALSegmentV3(ctx context.Context, generation string, index int, offset int64) (io.ReadCloser, error) {
	return c.unpack(ctx, litestream.WALSegmentPathV3("", generation, index, offset))
}

// unpack unpacks above the watch: a block of 4 MiB may take its time, as long as some of
// it arrives.
func (c *Client) unpack(ctx context.Context, name string) (io.ReadCloser, error) {
	rc, err := c.open(ctx, func(ctx context.Context) (io.ReadCloser, error) { return c.place.open(ctx, name) })
	if err != nil {
		return nil, err
	}
	return unpacked{lz4.NewReader(rc), rc}, nil
}

type unpacked struct {
	io.Reader
	io.Closer
}
