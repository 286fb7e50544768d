package lineage

import (
	"fmt"

	"github.com/superfly/ltx"
)

// Relation is how a database stands to its replica.
type Relation int

// The relations.
const (
	// Continues: the database is where the replica ends, or ahead of it on the same
	// line. Where the two have no transaction in common any more, it counts as this
	// when the database is not behind by its number.
	Continues Relation = iota
	// Empty: the replica has no files in the format that is compared.
	Empty
	// Behind: the replica goes on where the database ends.
	Behind
	// Diverged: both went on by themselves.
	Diverged
)

// Finding is the outcome of a comparison.
type Finding struct {
	Relation Relation
	Local    ltx.TXID // the newest that was captured here, or restored; 0 for none
	Replica  ltx.TXID // the newest in the replica, 0 for none
	Common   ltx.TXID // the newest that both are known to have; 0 when not known
	Unsent   int      // commits here that the replica lacks; only counted if Stale
}

// Stale reports whether the database must not be uploaded: the replica has
// something that it lacks.
func (f Finding) Stale() bool { return f.Relation == Behind || f.Relation == Diverged }

// String is a sentence about how the two stand, with both positions.
func (f Finding) String() string {
	var s string
	switch {
	case f.Relation == Empty:
		return "the replica is empty"
	case f.Relation == Continues:
		return fmt.Sprintf("the database, at transaction %s, continues the replica, at %s", f.Local, f.Replica)
	case f.Local == 0:
		s = fmt.Sprintf("the replica has transactions up to %s, and nothing beside the database shows which of them it has", f.Replica)
	case f.Relation == Diverged && f.Common > 0:
		s = fmt.Sprintf("the database, at transaction %s, and the replica, at %s, diverged after %s", f.Local, f.Replica, f.Common)
	case f.Relation == Diverged:
		s = fmt.Sprintf("the database, at transaction %s, and the replica, at %s, have different origins", f.Local, f.Replica)
	default:
		s = fmt.Sprintf("the database ends at transaction %s, and the replica goes on to %s: somebody else has written since", f.Local, f.Replica)
	}
	switch f.Unsent {
	case 0:
		return s
	case 1:
		return s + "; 1 transaction here is not in the replica"
	}
	return fmt.Sprintf("%s; %d transactions here are not in the replica", s, f.Unsent)
}

// replicaEnd is the last transaction here that is known to be in the replica
// because the replica goes further on the same line.
func (f Finding) replicaEnd() ltx.TXID {
	if f.Relation == Behind {
		return f.Local
	}
	return 0
}
