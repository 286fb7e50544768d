// Package levels lists the files of a replica, on all levels side by side.
package levels

import (
	"context"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
	"golang.org/x/sync/errgroup"
)

// Files are the files of a replica by their level, as the replica lists them: each
// level's in the order of their transactions.
type Files [litestream.SnapshotLevel + 1][]*ltx.FileInfo

// Client lists one level of a replica. See litestream.ReplicaClient.
type Client interface {
	LTXFiles(ctx context.Context, level int, seek ltx.TXID, useMetadata bool) (ltx.FileIterator, error)
}

// List lists each level once, all at the same time. exact asks for the time of each file
// as its writer noted it, which costs one request for each file where the list does not
// have it. The error is the client's, of the level that failed first; the lists of the
// others are ended then. A client that vouches for its lists does so when they are
// closed (see replica.Writer), so there are no files where there is an error.
func List(ctx context.Context, client Client, exact bool) (Files, error) {
	var files Files
	g, ctx := errgroup.WithContext(ctx)
	for level := range files {
		g.Go(func() error {
			itr, err := client.LTXFiles(ctx, level, 0, exact)
			if err != nil {
				return err
			}
			for itr.Next() {
				files[level] = append(files[level], itr.Item())
			}
			return itr.Close()
		})
	}
	if err := g.Wait(); err != nil {
		return Files{}, err
	}
	return files, nil
}

// Newest returns the file that leads to the newest transaction of some levels, and the
// zero value where they have none. Of several it is the first.
func Newest(levels ...[]*ltx.FileInfo) (newest ltx.FileInfo) {
	for _, files := range levels {
		for _, f := range files {
			if f.MaxTXID > newest.MaxTXID {
				newest = *f
			}
		}
	}
	return newest
}
