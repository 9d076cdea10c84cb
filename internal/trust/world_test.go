package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"ambitmesh.dev/ambit/internal/mesh"
)

var epoch = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// authority is a CA for tests, with its key.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	root Root
}

var serial int64 = 1000

func newKey() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return k
}

func template(cn string) *x509.Certificate {
	serial++
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{Organization: []string{"test"}, CommonName: cn}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, NotBefore: epoch.Add(-time.Hour), NotAfter: epoch.Add(10 * 365 * 24 * time.Hour), MaxPathLen: -1,
	}
}

func newAuthority(cn string, g mesh.Generation, change ...func(*x509.Certificate)) *authority {
	k, t := newKey(), template(cn)
	for _, f := range change {
		f(t)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &k.PublicKey, k)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	root, err := RootOf(der, g, "test")
	if err != nil {
		panic(err)
	}
	return &authority{key: k, cert: cert, root: root}
}

// sign makes an intermediate.
func (a *authority) sign(cn string, life time.Duration) Issued {
	t := template(cn)
	t.MaxPathLenZero, t.MaxPathLen = true, 0
	t.NotBefore, t.NotAfter = epoch.Add(-time.Hour), epoch.Add(life)
	k := newKey()
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, &k.PublicKey, a.key)
	if err != nil {
		panic(err)
	}
	i, err := IssuedOf(pemOf(der), a.root.Fingerprint)
	if err != nil {
		panic(err)
	}
	return i
}

// cross certifies b's key and name by a.
func (a *authority) cross(b *authority) []byte {
	t := template("")
	t.Subject, t.SubjectKeyId = b.cert.Subject, b.cert.SubjectKeyId
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, &b.key.PublicKey, a.key)
	if err != nil {
		panic(err)
	}
	return der
}

// setup says what kind of world is searched.
type setup struct {
	clusters, replicas, verifiers int
	own                           []bool // clusters that come with a root of their own
	shared                        bool   // it is the same one
	hot                           bool   // ISTIO_MULTIROOT_MESH
	bytes                         bool   // istiod before 1.30: bundles are compared as bytes
	secondKind                    string // of the second verifier; default "ztunnel"
	restart                       bool   // autoRestartPods
	canary                        bool   // cluster 0
	sameName                      bool   // both roots have one name

	webhooks  bool // the API server as a client of istiod
	split     bool // istiods are probed some time before verifiers
	unordered bool // or after, and the agent says so
	crashes   int  // so often the hub, or an agent, forgets what it has in memory
	away      int  // clusters that may be away at a time
	fence     bool // one that is away may be fenced, and come back
	rollback  bool // a rollback may be asked for, and taken back, at any moment
	acts      int  // so often people may do either
	foreign   bool // somebody puts the first cacerts back, before the first barrier
	time      bool // it passes
	files     bool // a ConfigMap becomes a file within a tick
	silent    bool // the last verifier can't be probed
	maxStates int
	deep      bool // where there are more states than that: not the nearest, but some of all
}

func (s setup) String() string {
	var on []string
	for name, b := range map[string]bool{
		"multi-root off": !s.hot, "bytes compared": s.bytes, "autoRestartPods": s.restart, "canary": s.canary, "webhooks": s.webhooks, "probes take time": s.split,
		"crashes": s.crashes > 0, "away": s.away > 0, "fences": s.fence, "rollbacks": s.rollback, "time": s.time, "joins": len(s.own) > 0, "one root": s.shared,
	} {
		if b {
			on = append(on, name)
		}
	}
	slices.Sort(on)
	return fmt.Sprintf("%d clusters of %d istiods and %d verifiers; %s", s.clusters, s.replicas, s.verifiers, strings.Join(on, ", "))
}

const tick = 12 * time.Hour // of the model with time: a leaf lives 2 ticks

// universe holds what states refer to by number: certificates, observations, directives. Numbers of cluster things are relative to the cluster, so that clusters may change places.
type universe struct {
	setup
	without rule
	r1, r2  *authority
	owns    []*authority
	label   map[mesh.Fingerprint]byte // of a root: '1', '2' or 'o'
	certs   map[string]Issued         // by cluster, slot and label

	globals, members, issued, kept, directives, materials, bundles interner
	dirs                                                           [][]*mesh.TrustDirective // by number and cluster
	prints                                                         map[[2]uint16]mesh.Fingerprint
	numbers                                                        map[numbered]uint16
	retuned                                                        map[[2]int64]uint16
	renumbered                                                     map[[6]uint16][6]uint16
	mats                                                           []material
	obs                                                            map[obsKey]uint16
	obsOf                                                          []obsKey
	built                                                          map[[2]uint16]*mesh.TrustObservation
	memo                                                           map[memoKey]outcome
}

// interner numbers strings from 1.
type interner struct {
	ids  map[string]uint16
	text []string
}

func (i *interner) id(s string) uint16 {
	if n, ok := i.ids[s]; ok {
		return n
	}
	if i.ids == nil {
		i.ids = map[string]uint16{}
	}
	n := uint16(len(i.text))
	if n == 65535 {
		panic("too many")
	}
	i.ids[s], i.text = n, append(i.text, s)
	return n
}

// material is a content of cacerts: who signs, under which root, and the labels of the bundle in order.
type material struct {
	slot   string
	root   byte
	bundle string
}

func (u *universe) material(m material) uint16 {
	n := u.materials.id(m.slot + "|" + string(m.root) + "|" + m.bundle)
	for int(n) >= len(u.mats) {
		u.mats = append(u.mats, material{})
	}
	u.mats[n] = m
	return n
}

func newUniverse(s setup, without rule) *universe {
	u := &universe{
		setup: s, without: without, label: map[mesh.Fingerprint]byte{}, certs: map[string]Issued{}, prints: map[[2]uint16]mesh.Fingerprint{}, numbers: map[numbered]uint16{}, retuned: map[[2]int64]uint16{}, renumbered: map[[6]uint16][6]uint16{},
		obs: map[obsKey]uint16{}, built: map[[2]uint16]*mesh.TrustObservation{}, memo: map[memoKey]outcome{}, obsOf: make([]obsKey, 1), dirs: make([][]*mesh.TrustDirective, 1),
	}
	for _, i := range []*interner{&u.globals, &u.members, &u.issued, &u.kept, &u.directives, &u.materials, &u.bundles} {
		i.text = []string{""} // 0: none
	}
	u.r1 = newAuthority("root 1", 1)
	second := "root 2"
	if s.sameName {
		second = "root 1"
	}
	u.r2 = newAuthority(second, 2)
	u.label[u.r1.root.Fingerprint], u.label[u.r2.root.Fingerprint] = '1', '2'
	shared := newAuthority("own root", 0)
	for c := range s.clusters {
		own := shared
		if !s.shared {
			own = newAuthority(fmt.Sprintf("own root %d", c), 0)
		}
		u.owns = append(u.owns, own)
		u.label[own.root.Fingerprint] = 'o'
	}
	return u
}

func (u *universe) name(c int) mesh.ClusterName { return mesh.ClusterName("c" + fmt.Sprint(c)) }

// cert is the certificate of a slot of a cluster.
func (u *universe) cert(c int, slot string, root byte) Issued {
	if root == 'o' {
		i, err := IssuedOf(pemOf(u.owns[c].root.Certificate), u.owns[c].root.Fingerprint)
		if err != nil {
			panic(err)
		}
		return i
	}
	key := fmt.Sprintf("%d/%s/%c", c, slot, root)
	i, ok := u.certs[key]
	if !ok {
		a := u.r1
		if root == '2' {
			a = u.r2
		}
		i = a.sign(key, 5*365*24*time.Hour)
		u.certs[key] = i
	}
	return i
}

func (u *universe) rootOf(c int, label byte) Root {
	switch label {
	case '1':
		return u.r1.root
	case '2':
		return u.r2.root
	default:
		return u.owns[c].root
	}
}

func (u *universe) roots(c int, labels string) (out []mesh.Fingerprint) {
	for i := range len(labels) {
		out = append(out, u.rootOf(c, labels[i]).Fingerprint)
	}
	return out
}

// labels reads a bundle.
func (u *universe) labels(file []byte) string {
	var out []byte
	for {
		block, rest := pem.Decode(file)
		if block == nil {
			return string(out)
		}
		out, file = append(out, u.label[mesh.FingerprintOf(block.Bytes)]), rest
	}
}

// directive numbers a directive. Certificates and names of the cluster are left out of its text, so that the same directive to another cluster has the same number.
func (u *universe) directive(c int, d *mesh.TrustDirective) uint16 {
	if d == nil {
		return 0
	}
	var b strings.Builder
	for _, i := range d.Intermediates {
		fmt.Fprintf(&b, "%s %d %t %s;", i.ID, i.Generation, len(i.Chain) > 0, i.Take)
	}
	fmt.Fprintf(&b, "|%d|%s|%s|%s|%s", d.Turn, d.Signer, u.labels(d.Bundle), d.Restart.Istiod, d.Restart.DataPlane)
	n := u.directives.id(b.String())
	for int(n) >= len(u.dirs) {
		u.dirs = append(u.dirs, make([]*mesh.TrustDirective, u.clusters))
	}
	if u.dirs[n][c] == nil {
		u.dirs[n][c] = d
		_, u.prints[[2]uint16{n, uint16(c)}] = Encode(d)
		u.numbers[numbered{c, u.prints[[2]uint16{n, uint16(c)}]}] = n
	}
	if _, f := Encode(d); f != u.prints[[2]uint16{n, uint16(c)}] {
		panic("two directives of one text: " + b.String())
	}
	return n
}

// dir is a directive by number, as cluster c would get it.
func (u *universe) dir(c int, n uint16) *mesh.TrustDirective {
	if u.dirs[n][c] != nil {
		return u.dirs[n][c]
	}
	for from, d := range u.dirs[n] { // another cluster got it first: translate names
		if d == nil {
			continue
		}
		t := *d
		t.Intermediates = slices.Clone(d.Intermediates)
		for i := range t.Intermediates {
			o := &t.Intermediates[i]
			o.CommonName = commonName(u.name(c), o.ID)
			if len(o.Chain) > 0 {
				o.Chain = u.cert(c, o.ID, u.slotRoot(from, o)).Chain
			}
		}
		var file []byte
		for _, f := range u.labels(d.Bundle) {
			file = join(file, pemOf(u.rootOf(c, byte(f)).Certificate))
		}
		t.Bundle = file
		u.dirs[n][c] = &t
		_, u.prints[[2]uint16{n, uint16(c)}] = Encode(&t)
		u.numbers[numbered{c, u.prints[[2]uint16{n, uint16(c)}]}] = n
		return &t
	}
	panic("unknown directive")
}

func (u *universe) slotRoot(c int, o *mesh.IntermediateOrder) byte {
	for _, label := range []byte{'1', '2', 'o'} {
		if bytes.Equal(u.cert(c, o.ID, label).Chain, o.Chain) {
			return label
		}
	}
	panic("unknown chain")
}

// numbered finds the number of a directive.
type numbered struct {
	c int
	f mesh.Fingerprint
}

// memberID numbers a Member, the fingerprint of its directive being replaced by the directive's number.
func (u *universe) memberID(c int, m Member) uint16 {
	n := uint16(0)
	if !m.Directed.IsZero() {
		n = u.numbers[numbered{c, m.Directed}]
		if n == 0 {
			panic("a member with an unknown directive")
		}
	}
	m.Directed = mesh.Fingerprint{}
	if !u.time { // nothing is asked of time
		m.Ready, m.ReadyFor = time.Time{}, ""
	}
	return u.members.id(fmt.Sprintf("%d %s", n, mustJSON(m)))
}

func (u *universe) memberOf(c int, id uint16) Member {
	var n uint16
	text := u.members.text[id]
	number, rest, _ := strings.Cut(text, " ")
	_, _ = fmt.Sscan(number, &n)
	m := fromJSON[Member](rest)
	if n != 0 {
		u.dir(c, n)
		m.Directed = u.prints[[2]uint16{n, uint16(c)}]
	}
	return m
}

// retune is directive n with another turn.
func (u *universe) retune(n uint16, turn int64) uint16 {
	key := [2]int64{int64(n), turn}
	if to, ok := u.retuned[key]; ok {
		return to
	}
	c := slices.IndexFunc(u.dirs[n], func(d *mesh.TrustDirective) bool { return d != nil })
	d := *u.dirs[n][c]
	d.Turn = turn
	to := u.directive(c, &d)
	u.retuned[key] = to
	return to
}

// renumber gives the directives that a cluster's state refers to the lowest turns in the same order: nothing hangs on the numbers but which is later.
func (u *universe) renumber(l *local) {
	if u.without&ruleTurn != 0 {
		return
	}
	key := [6]uint16{l.member, l.out, l.applied, l.done, l.obs, l.pend}
	if to, ok := u.renumbered[key]; ok {
		l.member, l.out, l.applied, l.done, l.obs, l.pend = to[0], to[1], to[2], to[3], to[4], to[5]
		return
	}
	number, rest, _ := strings.Cut(u.members.text[l.member], " ")
	m := fromJSON[Member](rest)
	var directed uint16
	_, _ = fmt.Sscan(number, &directed)
	refer := []*uint16{&directed, &l.out, &l.applied, &l.done}
	obs, pend := u.obsOf[l.obs], u.obsOf[l.pend]
	refer = append(refer, &obs.applied, &obs.done, &pend.applied, &pend.done)
	turns := []int64{m.Turn}
	for _, n := range refer {
		if *n != 0 {
			turns = append(turns, u.turn(*n))
		}
	}
	slices.Sort(turns)
	turns = slices.Compact(turns)
	for _, n := range refer {
		if *n != 0 {
			*n = u.retune(*n, int64(slices.Index(turns, u.turn(*n)))+1)
		}
	}
	if m.Turn > 0 {
		m.Turn = int64(slices.Index(turns, m.Turn)) + 1
	}
	l.member = u.members.id(fmt.Sprintf("%d %s", directed, mustJSON(m)))
	if l.obs != 0 {
		l.obs = u.observation(obs)
	}
	if l.pend != 0 {
		l.pend = u.observation(pend)
	}
	u.renumbered[key] = [6]uint16{l.member, l.out, l.applied, l.done, l.obs, l.pend}
}

func (u *universe) turn(n uint16) int64 {
	for _, d := range u.dirs[n] {
		if d != nil {
			return d.Turn
		}
	}
	panic("unknown directive")
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func fromJSON[T any](s string) (v T) {
	if s == "" {
		return v
	}
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		panic(err)
	}
	return v
}

func TestIntermediatesFitTheirRoot(t *testing.T) {
	a := newAuthority("a", 1)
	i := a.sign("i", time.Hour)
	certs, err := parseAll(i.Chain)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(certs, []*x509.Certificate{a.cert}, epoch); err != nil {
		t.Fatal(err)
	}
}
