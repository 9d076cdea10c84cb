package probe

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/dynamic"

	"ambitmesh.dev/ambit/internal/mesh"
)

// Config is what New needs.
type Config struct {
	Client         dynamic.Interface
	IstioNamespace string
	// Token of our own service account for audience istio-ca. It is read anew for every round: the kubelet renews it.
	Token func() (string, error)
	// Dial reaches Pods; nil: as the network has it.
	Dial Dialer
	// Directed is what is in force at the moment it is called.
	Directed func() Directed
	// Publish takes what a round found, and when the round began.
	Publish func(o mesh.TrustObservation, began time.Time)
	Log     *slog.Logger
}

// Directed is what a round is measured by.
type Directed struct {
	// Applied is the fingerprint of the directive in force; zero: none.
	Applied mesh.Fingerprint
	// Since is when it came into force.
	Since time.Time
	// Signer and Roots are what istiod should sign with and hand out; Signer is zero before cacerts is written.
	Signer mesh.Fingerprint
	Roots  []*x509.Certificate
	// Known are certificates known from elsewhere (of the Secret, of the directive): roots among them verify istiod, CAs explain who issued a leaf.
	Known []*x509.Certificate
}

const (
	istiodPort = "15012"
	hbonePort  = "15008"

	quiet    = 5 * time.Minute  // between rounds while all is as directed
	often    = 3 * time.Second  // at first, while it is not
	seldom   = time.Minute      // in the end, while it is not: each probe leaves a line in the access log of ztunnel
	gather   = time.Second      // after news, before a round: they come in bursts
	patience = 15 * time.Second // with the API server, after the start
	slowdown = 20               // the pause is at least this part of the time that it has lasted

	parallel   = 64 // endpoints at a time
	askTime    = 10 * time.Second
	shakeTime  = 3 * time.Second
	spread     = 10 // a pause varies by a tenth
	maxLastAsk = 64 // replicas whose last good answer is kept
)

// Prober probes. New allocates, Run works.
type Prober struct {
	cfg   Config
	world *world
	look  func() view
	wake  chan struct{}
	last  map[string]answer // the last good answer of an istiod, by Pod
}

// New allocates a Prober.
func New(cfg Config) *Prober {
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	w := newWorld(cfg.IstioNamespace)
	return &Prober{cfg: cfg, world: w, look: w.now, wake: make(chan struct{}, 1), last: map[string]answer{}}
}

// Kick asks for a round soon: something has changed.
func (p *Prober) Kick() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run probes until ctx ends; it returns nil then.
func (p *Prober) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { p.world.follow(ctx, p.cfg) })
	start, wait := time.Now(), gather
	for {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		case <-p.wake:
			t.Stop()
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(gather):
			}
		}
		began := time.Now()
		v := p.look()
		if v.incomplete && began.Sub(start) < patience {
			wait = gather
			continue
		}
		d := p.cfg.Directed()
		o := p.round(ctx, d, v, began)
		if ctx.Err() != nil {
			return nil
		}
		p.cfg.Publish(o, began)
		wait = pause(asDirected(o, d), began.Sub(d.Since), time.Since(began))
		wait += rand.N(wait / spread) //nolint:gosec // spreads load, guards nothing
	}
}

// pause is how long to wait before the next round: age is how long the directive has been in force, took how long the last round took.
func pause(asDirected bool, age, took time.Duration) time.Duration {
	if asDirected {
		return quiet
	}
	return max(min(max(age/slowdown, often), seldom), 5*took)
}

// round probes everything once: first the istiods, and when all of them have answered, what may have learnt from them (facts T5).
func (p *Prober) round(ctx context.Context, d Directed, v view, began time.Time) mesh.TrustObservation {
	f := findings{applied: d.Applied, at: began, known: d.Known}
	for _, pod := range v.pods {
		if pod.role == roleIstiod {
			f.istiods = append(f.istiods, istiod{pod: pod})
		}
	}
	roots, token := p.roots(d, v), sync.OnceValues(p.cfg.Token)
	var jobs []func()
	for i := range f.istiods {
		jobs = append(jobs, func() { p.ask(ctx, &f.istiods[i], roots, token) })
	}
	inParallel(jobs)
	p.remember(f.istiods)

	f.view = p.look()
	f.ordered = allAnswered(f.istiods, f.view.pods)
	targets := targetsOf(f.view.pods)
	f.verifiers = make([]verifier, len(targets))
	jobs = jobs[:0]
	for i := range targets {
		jobs = append(jobs, func() { f.verifiers[i] = p.shake(ctx, targets[i]) })
	}
	rand.Shuffle(len(jobs), func(i, j int) { jobs[i], jobs[j] = jobs[j], jobs[i] }) //nolint:gosec // no node gets all of its share at once
	inParallel(jobs)
	o := assemble(f)
	if f.view.incomplete {
		o.Applied, o.Ordered = mesh.Fingerprint{}, false // it proves nothing
	}
	return o
}

// allAnswered says whether every istiod there is now had answered.
func allAnswered(asked []istiod, now []pod) bool {
	answered := map[string]bool{}
	for _, i := range asked {
		if i.err != nil {
			return false
		}
		answered[i.pod.name+" "+i.pod.ip] = true
	}
	for _, p := range now {
		if p.role == roleIstiod && !answered[p.name+" "+p.ip] {
			return false
		}
	}
	return len(asked) > 0
}

// inParallel runs jobs, at most `parallel` at a time.
func inParallel(jobs []func()) {
	next := make(chan func())
	var wg sync.WaitGroup
	for range min(parallel, len(jobs)) {
		wg.Go(func() {
			for job := range next {
				job()
			}
		})
	}
	for _, job := range jobs {
		next <- job
	}
	close(next)
	wg.Wait()
}

// roots are those by which istiods are verified before they get our token: of the Secret, of the directive, and the root ConfigMap of istiod's own namespace.
func (p *Prober) roots(d Directed, v view) *x509.CertPool {
	pool := x509.NewCertPool()
	own, err := certificates([]byte(v.maps[p.cfg.IstioNamespace]))
	if err != nil {
		p.cfg.Log.Warn("the root ConfigMap can't be read", "namespace", p.cfg.IstioNamespace, "error", err)
	}
	for _, c := range slices.Concat(d.Roots, d.Known, own) {
		if c.IsCA && string(c.RawSubject) == string(c.RawIssuer) {
			pool.AddCert(c)
		}
	}
	return pool
}

func (p *Prober) ask(ctx context.Context, i *istiod, roots *x509.CertPool, token func() (string, error)) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	names := []string{"istiod." + p.cfg.IstioNamespace + ".svc"}
	if r := i.pod.revision; r != "" && r != "default" {
		names = append(names, "istiod-"+r+"."+p.cfg.IstioNamespace+".svc")
	}
	i.answer, i.err = ask(ctx, question{
		address: net.JoinHostPort(i.pod.ip, istiodPort), names: names, cluster: i.pod.cluster, token: token, roots: roots, dial: p.cfg.Dial,
	})
	if i.err == nil {
		return
	}
	i.err = reason(i.err)
	if last, ok := p.last[i.pod.name]; ok {
		serving := i.answer.serving
		if i.answer = last; len(serving) > 0 {
			i.answer.serving = serving
		}
	}
}

// remember keeps the answers of those that could be asked, and forgets those that are gone.
func (p *Prober) remember(all []istiod) {
	last := map[string]answer{}
	for _, i := range all {
		if i.answer.leaf != nil && len(last) < maxLastAsk {
			last[i.pod.name] = i.answer
		}
	}
	p.last = last
}

func (p *Prober) shake(ctx context.Context, t target) verifier {
	v := verifier{target: t, pod: t.pods[0].name}
	if t.silent != "" {
		v.err = errors.New(t.silent)
		return v
	}
	for i, pod := range t.pods { // all of them present the same certificate
		ctx, cancel := context.WithTimeout(ctx, shakeTime)
		shown, err := Shake(ctx, p.cfg.Dial, net.JoinHostPort(pod.ip, hbonePort))
		cancel()
		if err == nil {
			return verifier{target: t, pod: pod.name, shown: shown}
		}
		if i == 0 {
			v.err = reason(err)
		}
	}
	return v
}

// reason drops addresses from an error, so that endpoints with the same trouble form one group.
func reason(err error) error {
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &op) && op.Timeout():
		return errors.New("no answer in time: is it reachable from the agent (NetworkPolicy, a node that is not ready)?")
	case errors.As(err, &op):
		return op.Err
	}
	return err
}
