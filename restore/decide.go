package restore

import "fmt"

// databaseState is what stands at the database's path.
type databaseState int

// The states of a database file.
const (
	// missing: no file, or one of 0 bytes that no WAL belongs to.
	missing databaseState = iota
	// present: a file with something in it, or with a WAL beside it.
	present
)

// replicaState is what the replica's side answered.
type replicaState int

// The states of a replica.
const (
	// notAsked: the decision does not depend on it, so no request was made.
	notAsked replicaState = iota
	// unreachable: it did not answer, or refused us.
	unreachable
	// empty: it answered, and has no backup in any format.
	empty
	// hasData: it answered, and a backup can be restored from it.
	hasData
	// incomplete: it answered, and has files, but they add up to no database.
	incomplete
)

// askedFor is whether a restore over the existing database was requested.
type askedFor int

// The answers.
const (
	// askedNothing: no restore was requested.
	askedNothing askedFor = iota
	// askedPending: a restore is to be made.
	askedPending
	// askedBefore: the same request was carried out before; this is a restart.
	askedBefore
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

// facts is all that a decision rests on, gathered once.
type facts struct {
	Database databaseState
	Asked    askedFor
	Compared *Comparison // with the replica; nil: not asked, no answer, or nothing to compare with
	OnStale  OnStale
	Replica  replicaState
	Err      error // why the replica is unreachable or incomplete
}

// isStale reports whether the database is known to lack something that the replica has.
func (f facts) isStale() bool { return f.Compared != nil && f.Compared.Stale }

// isContinuation reports whether the database is known to be where the replica ends, or
// ahead of it.
func (f facts) isContinuation() bool {
	return f.Compared != nil && !f.Compared.Stale || f.Database == present && f.Replica == empty
}

// lineage names what was found by the comparison for logs.
func (f facts) lineage() string {
	switch {
	case f.Compared == nil:
		return "not compared"
	case f.Compared.Stale:
		return "stale"
	}
	return "continues"
}

// reason is why a restore is made, if one is.
func (f facts) reason() Reason {
	switch {
	case f.Asked == askedPending:
		return reasonPending
	case f.isStale():
		return reasonStale
	}
	return reasonMissing
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

// decision is an Action and why, in words for a person.
type decision struct {
	Action Action
	Why    string
}

// decide is the table of what happens before the app starts. It is pure: the
// same facts always lead to the same decision.
func decide(f facts) decision {
	switch {
	case f.Database == present && f.Asked != askedPending:
		return decidePresent(f)
	case f.Asked == askedPending && f.Replica == hasData:
		return decision{Restore, "a restore was requested and the replica has a backup"}
	case f.Asked == askedPending && f.Replica == empty:
		return decision{Fail, "a restore was requested, but the replica is empty: there is nothing to restore"}
	case f.Asked == askedPending && f.Replica == incomplete:
		return decision{Fail, fmt.Sprintf("a restore was requested, but the replica's files are incomplete: %v", f.Err)}
	case f.Asked == askedPending && f.Database == present:
		return decision{Fail, fmt.Sprintf("a restore was requested, but the replica can't be read: %v", f.Err)}
	case f.Replica == hasData:
		return decision{Restore, "the database is missing and the replica has a backup"}
	case f.Replica == empty:
		return decision{Fresh, "the database is missing and the replica answered that it is empty: a first start"}
	case f.Replica == incomplete:
		return decision{Fail, fmt.Sprintf("the database is missing and the replica's files are incomplete: %v", f.Err)}
	default:
		return decision{Fail, fmt.Sprintf("the database is missing and the replica can't be read: %v; "+
			"starting the app now would begin an empty database in the place of the backup", f.Err)}
	}
}

// decidePresent is the part of the table for a database that is there, and is not
// to be restored over.
func decidePresent(f facts) decision {
	restart := ""
	if f.Asked == askedBefore {
		restart = ", and the requested restore was already made: this is a restart"
	}
	switch {
	case f.isStale() && f.OnStale == FailStale:
		return decision{Fail, "the database is stale: " + f.Compared.How + "; because of --on-stale=fail, nothing is restored and nothing is uploaded"}
	case f.isStale() && f.Replica == hasData:
		return decision{Restore, "the database is stale: " + f.Compared.How}
	case f.isStale():
		return decision{Fail, fmt.Sprintf("the database is stale: %s; but the replica can't be restored: %v", f.Compared.How, f.Err)}
	case f.Compared != nil:
		return decision{Start, "the database is there, and continues the replica" + restart}
	case f.Replica == empty:
		return decision{Start, "the database is there, and the replica is empty" + restart}
	case f.Replica == unreachable:
		return decision{Start, "the database is there; the replica can't be read, so the two are compared before anything is uploaded" + restart}
	}
	return decision{Start, "the database is there" + restart}
}

// needsReplica reports whether the decision depends on the replica.
func needsReplica(db databaseState, asked askedFor) bool {
	return db == missing || asked == askedPending
}

// String names the state for logs.
func (d databaseState) String() string {
	return [...]string{"missing", "present"}[d]
}

// String names the state for logs.
func (r replicaState) String() string {
	return [...]string{"not asked", "unreachable", "empty", "has data", "incomplete"}[r]
}

// String names the request for logs.
func (a askedFor) String() string {
	return [...]string{"no", "pending", "carried out before"}[a]
}

// String names the action for logs.
func (a Action) String() string {
	return [...]string{"start", "start fresh", "restore", "fail"}[a]
}
