package replicate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/benbjohnson/litestream"
)

// Seal ends a line in the replica, before another one begins: after a restore to
// a point in time the database is uploaded in full under the next transaction,
// and a compaction that reached over that place would merge the two, and keep of
// the old one only what it had before. So what is there is compacted now, level
// by level, and no later compaction has a reason to reach back.
func Seal(ctx context.Context, client Client, log *slog.Logger) error {
	c := litestream.NewCompactor(client, log)
	for _, level := range litestream.DefaultCompactionLevels[1:] {
		if _, err := c.Compact(ctx, level.Level); err != nil && !errors.Is(err, litestream.ErrNoCompaction) {
			return fmt.Errorf("seal level %d: %w", level.Level, err)
		}
	}
	return nil
}
