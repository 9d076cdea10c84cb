package tokens

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Settings are what a person may choose.
type Settings struct {
	// Lifetime is what tokens are asked for; RotateEvery is when the next one is made, less up to a tenth.
	Lifetime, RotateEvery time.Duration
}

// The bounds of Settings: kube-apiserver grants no token for less than MinLifetime.
const (
	DefaultLifetime = 24 * time.Hour
	MinLifetime     = 10 * time.Minute
	MinRotate       = 10 * time.Second
	// share of a lifetime after which a token is rotated unless RotateEvery says otherwise: before half of it, with room for a second attempt.
	share = 0.4
	// jitter is the part of RotateEvery by which rotations are spread, always to the early side.
	jitter = 10
)

// WithDefaults fills in what is not set.
func (s Settings) WithDefaults() Settings {
	s.Lifetime = cmp.Or(s.Lifetime, DefaultLifetime)
	s.RotateEvery = cmp.Or(s.RotateEvery, time.Duration(share*float64(s.Lifetime)))
	return s
}

// Validate says what is wrong with settings that WithDefaults has completed.
func (s Settings) Validate() error {
	switch {
	case s.Lifetime < MinLifetime:
		return fmt.Errorf("token lifetime %s: at least %s, since an API server grants no less", s.Lifetime, MinLifetime)
	case s.RotateEvery < MinRotate:
		return fmt.Errorf("rotation of tokens every %s: at least %s", s.RotateEvery, MinRotate)
	case s.RotateEvery > s.Lifetime/2:
		return fmt.Errorf("rotation of tokens every %s: at most half of their life (%s), so that a second attempt is possible", s.RotateEvery, s.Lifetime/2)
	}
	return nil
}

// Member is a registered cluster.
type Member struct {
	Cluster      mesh.ClusterName
	Registration string // metadata.uid of its KubernetesCluster
	IstioID      string // what its istiod calls it; empty: its name
	Connected    bool
	// Report is what its agent said last; nil: nothing since the server began.
	Report *mesh.TokenReport
}

// member is a Member whose report can be asked by peer.
type member struct {
	*Member
	held   map[mesh.ClusterName]*mesh.HeldToken
	newest map[mesh.ClusterName]mesh.MintedToken
	live   map[mesh.ClusterName]int
}

func index(m *Member) *member {
	out := &member{Member: m, held: map[mesh.ClusterName]*mesh.HeldToken{}, newest: map[mesh.ClusterName]mesh.MintedToken{}, live: map[mesh.ClusterName]int{}}
	if m.Report == nil {
		return out
	}
	for i := range m.Report.Held {
		out.held[m.Report.Held[i].Peer] = &m.Report.Held[i]
	}
	for _, t := range m.Report.Minted {
		out.live[t.Peer]++
		if t.Generation > out.newest[t.Peer].Generation {
			out.newest[t.Peer] = t
		}
	}
	return out
}

// Pair is a direction between two clusters: istiods of Reader read the API server of Target.
type Pair struct{ Reader, Target mesh.ClusterName }

// Input is all that Next decides from.
type Input struct {
	Settings Settings
	Members  []Member // sorted by Cluster
	// Wanted are the pairs of the mesh.
	Wanted map[Pair]bool
}

// State is how a pair is doing.
type State string

// The states of a pair.
const (
	Synced   State = "Synced"   // every istiod was seen synced with the newest token
	Rotating State = "Rotating" // there is a newer token than the one istiods were seen with
	Pending  State = "Pending"  // there never was a token in use, as far as is known
	Expired  State = "Expired"  // what the reader has is no longer accepted
	HandMade State = "HandMade" // somebody else's remote secret is there, and left alone
)

// Status is one pair, for people.
type Status struct {
	Reader mesh.ClusterName `json:"reader"`
	Target mesh.ClusterName `json:"target"`
	State  State            `json:"state"`
	// Issued and Expires are those of the token that the reader's istiods are on; zero: none is known.
	Issued  time.Time `json:"issued,omitzero"`
	Expires time.Time `json:"expires,omitzero"`
	// Live is how many tokens the target accepts for this pair.
	Live int `json:"live"`
	// Generation is in use, Newest is the newest that was made.
	Generation mesh.TokenGeneration `json:"generation,omitempty"`
	Newest     mesh.TokenGeneration `json:"newest,omitempty"`
	// Message says what is awaited or wrong, and what to do.
	Message string `json:"message,omitempty"`
	// Problem: Message needs somebody.
	Problem bool `json:"problem,omitempty"`
}

// Plan is what Next comes to.
type Plan struct {
	// Directives have an entry for each member.
	Directives map[mesh.ClusterName]*mesh.TokenDirective
	// Pairs are sorted by reader, then target.
	Pairs []Status
}

// Next decides. It knows nothing but its input: a server that has just started comes to the same as one that saw everything, as soon as agents have reported, and until then lets
// nothing die but what belongs to clusters that are not registered.
func Next(in Input, now time.Time) Plan {
	members := make(map[mesh.ClusterName]*member, len(in.Members))
	for i := range in.Members {
		members[in.Members[i].Cluster] = index(&in.Members[i])
	}
	plan := Plan{Directives: make(map[mesh.ClusterName]*mesh.TokenDirective, len(in.Members))}
	for i := range in.Members {
		m := members[in.Members[i].Cluster]
		d := &mesh.TokenDirective{Lifetime: int64(in.Settings.Lifetime / time.Second), RotateEvery: int64(in.Settings.RotateEvery / time.Second)}
		for j := range in.Members {
			o := members[in.Members[j].Cluster]
			opens, reads := in.Wanted[Pair{Reader: o.Cluster, Target: m.Cluster}], in.Wanted[Pair{Reader: m.Cluster, Target: o.Cluster}]
			if i == j || !opens && !reads {
				continue
			}
			d.Peers = append(d.Peers, peer(m, o, opens, reads))
		}
		plan.Directives[m.Cluster] = d
	}
	for _, p := range slices.SortedFunc(maps.Keys(in.Wanted), comparePairs) {
		r, t := members[p.Reader], members[p.Target]
		if in.Wanted[p] && r != nil && t != nil && r != t {
			plan.Pairs = append(plan.Pairs, status(r, t, now))
		}
	}
	return plan
}

func comparePairs(a, b Pair) int {
	return cmp.Or(strings.Compare(string(a.Reader), string(b.Reader)), strings.Compare(string(a.Target), string(b.Target)))
}

// peer is how m is to treat o: opens, o reads m's API server; reads, m reads o's.
func peer(m, o *member, opens, reads bool) mesh.TokenPeer {
	p := mesh.TokenPeer{Cluster: o.Cluster, Registration: o.Registration, IstioID: cmp.Or(o.IstioID, string(o.Cluster)), Mint: opens, Take: reads}
	if o.Report == nil {
		return p
	}
	p.ReadsSecrets = o.Report.ReadsSecrets
	if len(o.Report.Key.Sign) > 0 {
		key := o.Report.Key
		p.Key = &key
	}
	held := o.held[m.Cluster]
	if held == nil {
		return p
	}
	if held.Foreign != "" {
		p.Mint = false // its istiods go by a secret that somebody else made: a token would lie about unused
		return p
	}
	p.Synced, p.Retire = held.Synced, held.Synced
	return p
}

// status tells how a pair is doing, from what both ends said.
func status(reader, target *member, now time.Time) Status {
	s := Status{Reader: reader.Cluster, Target: target.Cluster, State: Pending}
	newest, held := target.newest[reader.Cluster], reader.held[target.Cluster]
	s.Live, s.Newest = target.live[reader.Cluster], newest.Generation
	if held != nil {
		s.Issued, s.Expires, s.Generation = held.Issued, held.Expires, held.Synced
	}
	switch {
	case held != nil && held.Foreign != "":
		s.State, s.Message = HandMade, held.Foreign
		s.Issued, s.Expires = time.Time{}, time.Time{}
		return s
	case held != nil && held.Generation > 0 && !held.Expires.After(now):
		s.State, s.Problem, s.Message = Expired, true, fmt.Sprintf("istiods of %s have a token that ended at %s", reader.Cluster, held.Expires.UTC().Format(time.RFC3339))
	case held != nil && held.Synced > 0 && held.Synced >= newest.Generation:
		s.State = Synced
	case held != nil && held.Synced > 0:
		s.State = Rotating
	}
	if why, problem := awaited(reader, target, held, newest); why != "" && (s.State != Synced || problem) {
		s.Message, s.Problem = strings.TrimPrefix(s.Message+"; "+why, "; "), s.Problem || problem
	} else if s.Message == "" && held != nil {
		s.Message = held.Note
	}
	return s
}

// awaited says what is missing next, beginning with what somebody has to mend.
func awaited(reader, target *member, held *mesh.HeldToken, newest mesh.MintedToken) (why string, problem bool) {
	switch {
	case target.Report != nil && target.Report.Unminted[reader.Cluster] != "":
		return target.Report.Unminted[reader.Cluster], true
	case held != nil && held.Problem != "":
		return held.Problem, true
	case !target.Connected:
		return fmt.Sprintf("no new token, since the agent of %s is not connected", target.Cluster), true
	case !reader.Connected:
		return fmt.Sprintf("no new token arrives, since the agent of %s is not connected", reader.Cluster), true
	case target.Report == nil:
		return fmt.Sprintf("the agent of %s has not reported (one before version 2.12 makes no tokens; or glooAgent.remoteSecrets.enabled is false there)", target.Cluster), false
	case reader.Report == nil:
		return fmt.Sprintf("the agent of %s has not reported (one before version 2.12 takes no tokens; or glooAgent.remoteSecrets.enabled is false there)", reader.Cluster), false
	case newest.Generation == 0 && len(target.Report.Problems) > 0:
		return fmt.Sprintf("%s: %s", target.Cluster, target.Report.Problems[0]), true
	case newest.Generation == 0:
		return fmt.Sprintf("%s makes a token", target.Cluster), false
	case held == nil && len(reader.Report.Problems) > 0:
		return fmt.Sprintf("%s: %s", reader.Cluster, reader.Report.Problems[0]), true
	case held == nil || held.Generation < newest.Generation:
		return fmt.Sprintf("the token is on its way to %s", reader.Cluster), false
	case held.Synced < newest.Generation:
		return fmt.Sprintf("istiods of %s have not all been seen synced with it", reader.Cluster), false
	}
	return "", false
}

// DueAt is when a cluster is to make a new token for a peer, given the newest one it has (zero: none): after RotateEvery, spread; while the peer's istiods have not been seen on
// that one, at half of its life, so that a peer which is away costs no heap of tokens.
func DueAt(from mesh.ClusterName, d *mesh.TokenDirective, p mesh.TokenPeer, newest mesh.MintedToken) time.Time {
	if newest.Generation == 0 {
		return time.Time{}
	}
	every := time.Duration(d.RotateEvery) * time.Second
	half := newest.Expires.Sub(newest.Issued) / 2
	if p.Synced < newest.Generation {
		every = max(every, half)
	}
	every = min(every, half)
	return newest.Issued.Add(every - spread(every, from, p.Cluster, newest.Generation))
}

// spread is a pair's and generation's part of a tenth of d: the same whenever it is asked, different for others.
func spread(d time.Duration, from, to mesh.ClusterName, g mesh.TokenGeneration) time.Duration {
	h := fnv.New32a()
	fmt.Fprintf(h, "%s\x00%s\x00%d", from, to, g)
	return time.Duration(float64(d/jitter) * float64(h.Sum32()%1000) / 1000)
}

// NextGeneration is the generation after newest. It is the time in seconds where that is later, so that an agent that lost everything still goes up.
func NextGeneration(newest mesh.TokenGeneration, now time.Time) mesh.TokenGeneration {
	return max(newest+1, mesh.TokenGeneration(now.Unix()))
}

// Dead lists those of a cluster's tokens that are to die now: of a peer that is none, of a generation that was retired, or by their own expiry. Without a directive only the last.
func Dead(d *mesh.TokenDirective, minted []mesh.MintedToken, now time.Time) []mesh.MintedToken {
	var out []mesh.MintedToken
	for _, t := range minted {
		if !t.Expires.After(now) {
			out = append(out, t)
			continue
		}
		if d == nil {
			continue
		}
		i := slices.IndexFunc(d.Peers, func(p mesh.TokenPeer) bool { return p.Cluster == t.Peer })
		if i < 0 || !d.Peers[i].Mint || t.Generation < d.Peers[i].Retire {
			out = append(out, t)
		}
	}
	return out
}
