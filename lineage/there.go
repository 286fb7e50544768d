package lineage

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/internal/levels"
	"github.com/slashacom/slasha-init/internal/wal"
)

// replica is what the replica has.
type replica struct {
	newest         ltx.TXID
	belowSnapshots ltx.TXID   // the newest of all other files
	small          []ltx.TXID // its L0 files, one transaction each, in order
}

func listReplica(ctx context.Context, client Client) (replica, error) {
	files, err := levels.List(ctx, client, false)
	if err != nil {
		return replica{}, fmt.Errorf("list replica: %w", err)
	}
	all := replica{
		newest:         levels.Newest(files[:]...).MaxTXID,
		belowSnapshots: levels.Newest(files[:litestream.SnapshotLevel]...).MaxTXID,
	}
	for _, f := range files[0] {
		all.small = append(all.small, f.MaxTXID)
	}
	slices.Sort(all.small)
	return all, nil
}

// mostCompared limits how many files are compared in search of the fork. Only the
// wording of the message depends on it.
const mostCompared = 16

// common returns the newest transaction whose file is the same on both sides, or 0.
// Its header is enough to know: besides the time in milliseconds it has the salts and
// the place in the WAL that the transaction came from.
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

// headerThere reads the header of a transaction in the replica, to be compared byte by
// byte. A header ends with zeros, and so does what is returned of a file that is
// shorter: where only zeros were cut off, it still counts as the same transaction.
func headerThere(ctx context.Context, client Client, txid ltx.TXID) ([]byte, error) {
	b, err := wal.FetchLTX(ctx, client, 0, txid, txid)
	if err != nil {
		return nil, fmt.Errorf("look at transaction %s in the replica: %w", txid, err)
	}
	return append(b, make([]byte, ltx.HeaderSize-len(b))...), nil
}
