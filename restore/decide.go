package restore

import "fmt"

// Database is what stands at the database's path.
type Database int

// The states of a database file.
const (
	// Missing: no file, or one of 0 bytes that no WAL belongs to.
	Missing Database = iota
	// Present: a file with something in it, or with a WAL beside it.
	Present
)

// Replica is what the replica's side answered.
type Replica int

// The states of a replica.
const (
	// NotAsked: the decision does not depend on it, so no request was made.
	NotAsked Replica = iota
	// Unreachable: it did not answer, or refused us.
	Unreachable
	// Empty: it answered, and has no backup in any format.
	Empty
	// HasData: it answered, and a backup can be restored from it.
	HasData
	// Incomplete: it answered, and has files, but they add up to no database.
	Incomplete
)

// Asked is whether somebody asked for a restore over the existing database.
type Asked int

// What was asked for.
const (
	// No: nobody asked.
	No Asked = iota
	// Pending: a restore is to be made.
	Pending
	// CarriedOut: the same request was carried out before; this is a restart.
	CarriedOut
)

// Lineage is how a database that is there stands to the replica.
type Lineage int

// The answers of a comparison.
const (
	// NotCompared: there was nothing to compare, or no answer.
	NotCompared Lineage = iota
	// Continues: the database is where the replica ends, or ahead of it.
	Continues
	// Stale: the replica has something that the database lacks.
	Stale
)

// OnStale is what to do about a stale database.
type OnStale int

// The choices of --on-stale.
const (
	// RestoreStale sets it aside and restores the replica's newest state.
	RestoreStale OnStale = iota
	// FailStale leaves everything as it is, and the app is not started.
	FailStale
)

// Facts is all that a decision rests on, gathered once.
type Facts struct {
	Database Database
	Asked    Asked
	Lineage  Lineage
	OnStale  OnStale
	Replica  Replica
	Err      error  // why the replica is Unreachable or Incomplete
	HowStale string // a sentence with both positions, of a database that is Stale
}

// Action is what to do before the app may start.
type Action int

// The actions.
const (
	// Start: the database stays as it is.
	Start Action = iota
	// Fresh: there is nothing to restore; the app makes a new database.
	Fresh
	// Restore: put the replica's newest state at the path.
	Restore
	// Fail: do not start the app. Nothing has been changed.
	Fail
)

// Decision is an Action and why, in words for a person.
type Decision struct {
	Action Action
	Why    string
}

// Decide is the table of what happens before the app starts. It is pure: the
// same facts always lead to the same decision.
func Decide(f Facts) Decision {
	switch {
	case f.Database == Present && f.Asked != Pending:
		return decidePresent(f)
	case f.Asked == Pending && f.Replica == HasData:
		return Decision{Restore, "a restore was asked for and the replica has a backup"}
	case f.Asked == Pending && f.Replica == Empty:
		return Decision{Fail, "a restore was asked for, but the replica is empty: there is nothing to restore"}
	case f.Asked == Pending && f.Replica == Incomplete:
		return Decision{Fail, fmt.Sprintf("a restore was asked for, but the replica's files are incomplete: %v", f.Err)}
	case f.Asked == Pending && f.Database == Present:
		return Decision{Fail, fmt.Sprintf("a restore was asked for, but the replica can't be read: %v", f.Err)}
	case f.Replica == HasData:
		return Decision{Restore, "the database is missing and the replica has a backup"}
	case f.Replica == Empty:
		return Decision{Fresh, "the database is missing and the replica answered that it is empty: a first start"}
	case f.Replica == Incomplete:
		return Decision{Fail, fmt.Sprintf("the database is missing and the replica's files are incomplete: %v", f.Err)}
	default:
		return Decision{Fail, fmt.Sprintf("the database is missing and the replica can't be read: %v; "+
			"starting the app now would begin an empty database in the place of the backup", f.Err)}
	}
}

// decidePresent is the part of the table for a database that is there, and is not
// to be restored over.
func decidePresent(f Facts) Decision {
	restart := ""
	if f.Asked == CarriedOut {
		restart = ", and the restore that is asked for was made before: this is a restart"
	}
	switch {
	case f.Lineage == Stale && f.OnStale == FailStale:
		return Decision{Fail, "the database is stale: " + f.HowStale + "; by --on-stale=fail nothing is restored and nothing uploaded"}
	case f.Lineage == Stale && f.Replica == HasData:
		return Decision{Restore, "the database is stale: " + f.HowStale}
	case f.Lineage == Stale:
		return Decision{Fail, fmt.Sprintf("the database is stale: %s; but the replica can't be restored: %v", f.HowStale, f.Err)}
	case f.Lineage == Continues:
		return Decision{Start, "the database is there, and continues the replica" + restart}
	case f.Replica == Empty:
		return Decision{Start, "the database is there, and the replica is empty" + restart}
	case f.Replica == Unreachable:
		return Decision{Start, "the database is there; the replica can't be read, and is compared before anything is uploaded" + restart}
	}
	return Decision{Start, "the database is there" + restart}
}

// needsReplica reports whether the decision depends on the replica.
func needsReplica(db Database, asked Asked) bool { return db == Missing || asked == Pending }

// String names the state for logs.
func (d Database) String() string {
	return [...]string{"missing", "present"}[d]
}

// String names the state for logs.
func (l Lineage) String() string {
	return [...]string{"not compared", "continues", "stale"}[l]
}

// String names the state for logs.
func (r Replica) String() string {
	return [...]string{"not asked", "unreachable", "empty", "has data", "incomplete"}[r]
}

// String names what was asked for in logs.
func (a Asked) String() string {
	return [...]string{"no", "pending", "carried out before"}[a]
}

// String names the action for logs.
func (a Action) String() string {
	return [...]string{"start", "start fresh", "restore", "fail"}[a]
}
