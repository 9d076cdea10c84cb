package tokens

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ambitmesh.dev/ambit/internal/mesh"
)

func at(seconds int) time.Time { return time.Date(2026, 1, 1, 0, 0, seconds, 0, time.UTC) }

func minted(peer mesh.ClusterName, g mesh.TokenGeneration, issued int) mesh.MintedToken {
	return mesh.MintedToken{Peer: peer, Generation: g, Issued: at(issued), Expires: at(issued + 86400)}
}

func held(peer mesh.ClusterName, has, synced mesh.TokenGeneration) mesh.HeldToken {
	return mesh.HeldToken{Peer: peer, Generation: has, Synced: synced, Issued: at(0), Expires: at(86400)}
}

func two(a, b *mesh.TokenReport) Input {
	return Input{
		Settings: Settings{}.WithDefaults(),
		Members:  []Member{{Cluster: "a", Registration: "ra", Connected: true, Report: a}, {Cluster: "b", Registration: "rb", IstioID: "bee", Connected: true, Report: b}},
		Wanted:   map[Pair]bool{{Reader: "a", Target: "b"}: true, {Reader: "b", Target: "a"}: true},
	}
}

func TestNextDirectives(t *testing.T) {
	key := mesh.TokenKey{Seal: []byte{1}, Sign: []byte{2}, Proof: []byte{3}}
	yes := true
	for name, tt := range map[string]struct {
		in   Input
		want []mesh.TokenPeer // of a
	}{
		"a server that has just started retires nothing": {two(nil, nil), []mesh.TokenPeer{{Cluster: "b", Registration: "rb", IstioID: "bee", Mint: true, Take: true}}},
		"what istiods were seen on retires what is older": {
			two(nil, &mesh.TokenReport{Key: key, ReadsSecrets: &yes, Held: []mesh.HeldToken{held("a", 3, 2)}}),
			[]mesh.TokenPeer{{Cluster: "b", Registration: "rb", IstioID: "bee", Key: &key, ReadsSecrets: &yes, Mint: true, Take: true, Retire: 2, Synced: 2}},
		},
		"a secret made by hand is left alone, and ours not made": {
			two(nil, &mesh.TokenReport{Key: key, Held: []mesh.HeldToken{{Peer: "a", Foreign: "Secret x"}}}),
			[]mesh.TokenPeer{{Cluster: "b", Registration: "rb", IstioID: "bee", Key: &key, Take: true}},
		},
		"one direction only": {
			func() Input { i := two(nil, nil); delete(i.Wanted, Pair{Reader: "b", Target: "a"}); return i }(),
			[]mesh.TokenPeer{{Cluster: "b", Registration: "rb", IstioID: "bee", Take: true}},
		},
		"no pair, no peer": {func() Input { i := two(nil, nil); i.Wanted = nil; return i }(), nil},
		"a cluster that is not registered is no peer": {
			func() Input { i := two(nil, nil); i.Members = i.Members[:1]; return i }(), nil,
		},
	} {
		d := Next(tt.in, at(0)).Directives["a"]
		if diff := cmp.Diff(&mesh.TokenDirective{Lifetime: 86400, RotateEvery: 34560, Peers: tt.want}, d); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestNextStatus(t *testing.T) {
	for name, tt := range map[string]struct {
		reader, target *mesh.TokenReport
		away           mesh.ClusterName
		now            int
		want           Status // Reader a, Target b
	}{
		"nobody has reported": {nil, nil, "", 0, Status{State: Pending}},
		"the token is on its way": {
			&mesh.TokenReport{}, &mesh.TokenReport{Minted: []mesh.MintedToken{minted("a", 5, 0)}}, "", 1, Status{State: Pending, Live: 1, Newest: 5},
		},
		"in use": {
			&mesh.TokenReport{Held: []mesh.HeldToken{held("b", 5, 5)}}, &mesh.TokenReport{Minted: []mesh.MintedToken{minted("a", 5, 0)}}, "", 1,
			Status{State: Synced, Live: 1, Newest: 5, Generation: 5, Issued: at(0), Expires: at(86400)},
		},
		"a newer one is there": {
			&mesh.TokenReport{Held: []mesh.HeldToken{held("b", 6, 5)}}, &mesh.TokenReport{Minted: []mesh.MintedToken{minted("a", 5, 0), minted("a", 6, 9), minted("c", 9, 9)}}, "", 10,
			Status{State: Rotating, Live: 2, Newest: 6, Generation: 5, Issued: at(0), Expires: at(86400)},
		},
		"ended": {
			&mesh.TokenReport{Held: []mesh.HeldToken{held("b", 5, 5)}}, nil, "", 86400,
			Status{State: Expired, Problem: true, Generation: 5, Issued: at(0), Expires: at(86400)},
		},
		"by hand": {
			&mesh.TokenReport{Held: []mesh.HeldToken{{Peer: "b", Foreign: "Secret x"}}}, nil, "", 0, Status{State: HandMade},
		},
		"the target is away": {
			&mesh.TokenReport{Held: []mesh.HeldToken{held("b", 5, 5)}}, nil, "b", 0,
			Status{State: Synced, Problem: true, Generation: 5, Issued: at(0), Expires: at(86400)},
		},
		"the reader can't use it": {
			&mesh.TokenReport{Held: []mesh.HeldToken{{Peer: "b", Problem: "firewall"}}}, &mesh.TokenReport{Minted: []mesh.MintedToken{minted("a", 5, 0)}}, "", 0,
			Status{State: Pending, Problem: true, Live: 1, Newest: 5},
		},
		"the target can't make one": {
			&mesh.TokenReport{}, &mesh.TokenReport{Unminted: map[mesh.ClusterName]string{"a": "no right"}}, "", 0, Status{State: Pending, Problem: true},
		},
	} {
		in := two(tt.reader, tt.target)
		for i := range in.Members {
			in.Members[i].Connected = in.Members[i].Cluster != tt.away
		}
		pairs := Next(in, at(tt.now)).Pairs
		if len(pairs) != 2 {
			t.Errorf("%s: %d pairs", name, len(pairs))
			continue
		}
		got := pairs[0]
		if (got.Message == "") != (tt.want.State == Synced && tt.away == "") {
			t.Errorf("%s: message %q", name, got.Message)
		}
		got.Message, tt.want.Reader, tt.want.Target = "", "a", "b"
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestDueAt(t *testing.T) {
	d := &mesh.TokenDirective{Lifetime: 86400, RotateEvery: 30}
	if got := DueAt("b", d, mesh.TokenPeer{Cluster: "a"}, mesh.MintedToken{}); !got.IsZero() {
		t.Errorf("none was made: due at %s", got)
	}
	for name, tt := range map[string]struct {
		every       int64
		synced      mesh.TokenGeneration
		least, most int // seconds
	}{
		"in use":                         {30, 5, 27, 30},
		"not seen in use: at half life":  {30, 4, 38880, 43200},
		"never later than half its life": {80000, 5, 38880, 43200},
	} {
		d.RotateEvery = tt.every
		got := DueAt("b", d, mesh.TokenPeer{Cluster: "a", Synced: tt.synced}, minted("a", 5, 0))
		if got.Before(at(tt.least)) || got.After(at(tt.most)) {
			t.Errorf("%s: due at %s", name, got)
		}
	}
	spreads := map[time.Duration]bool{}
	for g := range mesh.TokenGeneration(50) {
		spreads[spread(time.Hour, "a", "b", g)] = true
	}
	if len(spreads) < 40 {
		t.Errorf("rotations are spread over %d moments", len(spreads))
	}
}

func TestDead(t *testing.T) {
	all := []mesh.MintedToken{minted("a", 1, 0), minted("a", 2, 10), minted("c", 7, 10)}
	d := func(p ...mesh.TokenPeer) *mesh.TokenDirective { return &mesh.TokenDirective{Peers: p} }
	a, c := mesh.TokenPeer{Cluster: "a", Mint: true}, mesh.TokenPeer{Cluster: "c", Mint: true}
	retired, closed := a, c
	retired.Retire, closed.Mint = 2, false
	for name, tt := range map[string]struct {
		d    *mesh.TokenDirective
		now  int
		want []mesh.MintedToken
	}{
		"no directive: nothing":             {nil, 20, nil},
		"no directive: what has ended":      {nil, 86400, all[:1]},
		"peers, nothing retired":            {d(a, c), 20, nil},
		"what is older than the one in use": {d(retired, c), 20, all[:1]},
		"no peer any more: at once":         {d(a), 20, all[2:]},
		"a peer that gets none: at once":    {d(a, closed), 20, all[2:]},
		"nobody is a peer":                  {d(), 20, all},
	} {
		if diff := cmp.Diff(tt.want, Dead(tt.d, all, at(tt.now))); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestSettings(t *testing.T) {
	for name, tt := range map[string]struct {
		s  Settings
		ok bool
	}{
		"defaults":            {Settings{}, true},
		"short":               {Settings{Lifetime: 10 * time.Minute, RotateEvery: 30 * time.Second}, true},
		"too short a life":    {Settings{Lifetime: 9 * time.Minute}, false},
		"rotated too often":   {Settings{RotateEvery: time.Second}, false},
		"after half its life": {Settings{RotateEvery: 13 * time.Hour}, false},
		"negative":            {Settings{Lifetime: -time.Hour}, false},
	} {
		s := tt.s.WithDefaults()
		if err := s.Validate(); (err == nil) != tt.ok {
			t.Errorf("%s: %+v: %v", name, s, err)
		}
	}
}

func TestNextGeneration(t *testing.T) {
	got := []mesh.TokenGeneration{NextGeneration(0, at(0)), NextGeneration(mesh.TokenGeneration(at(9).Unix()), at(0))}
	if want := []mesh.TokenGeneration{mesh.TokenGeneration(at(0).Unix()), mesh.TokenGeneration(at(10).Unix())}; !slices.Equal(got, want) {
		t.Errorf("%d, want %d", got, want)
	}
}

func BenchmarkNext(b *testing.B) {
	for _, n := range []int{10, 100, 300} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			in := Input{Settings: Settings{}.WithDefaults(), Wanted: map[Pair]bool{}}
			for i := range n {
				m := Member{Cluster: mesh.ClusterName(fmt.Sprintf("c%03d", i)), Connected: true, Report: &mesh.TokenReport{}}
				for j := range n {
					o := mesh.ClusterName(fmt.Sprintf("c%03d", j))
					m.Report.Minted = append(m.Report.Minted, minted(o, 5, 0))
					m.Report.Held = append(m.Report.Held, held(o, 5, 5))
					in.Wanted[Pair{m.Cluster, o}] = i != j
				}
				in.Members = append(in.Members, m)
			}
			for b.Loop() {
				Next(in, at(1))
			}
		})
	}
}
