// Package meshcheck judges whether clusters make one ambient mesh.
//
// In: what each cluster's API server holds (any set of objects, from a live cluster or from files) and what only a live cluster tells (its clock, whether a token of a remote
// secret is accepted). Out: findings, each with the command that mends it. It needs no management plane. It must do no I/O, and must not call something wrong that it was not
// shown: what could not be read is said to be unknown.
package meshcheck

// Status of a finding.
type Status string

// The statuses, from good to bad; a finding is as bad as its worst detail.
const (
	OK      Status = "ok"
	Skipped Status = "skipped" // it needs several clusters, or something that was not shown
	Warning Status = "warning"
	Error   Status = "error"
)

// Finding is what one check says of one cluster.
type Finding struct {
	Check   string   `json:"check"` // its name, such as "Peers Check"
	Status  Status   `json:"status"`
	Summary string   `json:"summary"`
	Details []string `json:"details,omitempty"` // shown with --verbose, or when the finding is not ok
	Fix     []string `json:"fix,omitempty"`     // commands or instructions
}

// Report is what all checks say of one cluster.
type Report struct {
	Cluster  string    `json:"cluster"`
	Status   Status    `json:"status"`
	Findings []Finding `json:"findings"`
}

func (s Status) badness() int {
	switch s {
	case Warning:
		return 1
	case Error:
		return 2
	case OK, Skipped:
	}
	return 0
}

func worse(a, b Status) Status {
	if b.badness() > a.badness() || a == "" {
		return b
	}
	return a
}

// problem makes the finding at least as bad, and says why and what mends it.
func (f *Finding) problem(s Status, detail string, fix ...string) {
	f.Status = worse(f.Status, s)
	f.Details = append(f.Details, detail)
	for _, one := range fix {
		if one != "" {
			f.Fix = append(f.Fix, one)
		}
	}
}

func (f *Finding) note(detail string) { f.Details = append(f.Details, detail) }
