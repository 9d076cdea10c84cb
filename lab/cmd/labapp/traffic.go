package main

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

// behave is how a service serves: so slow, with so many failures.
type behave struct {
	slow   time.Duration // median of what a request takes beyond its calls
	errors float64       // share of requests answered with 503, 0 to 1
}

// wait takes as long as this service does, somewhere around its median.
func (b behave) wait(ctx context.Context) {
	if b.slow <= 0 {
		return
	}
	select {
	case <-time.After(time.Duration(float64(b.slow) * (0.5 + rand.ExpFloat64()*0.72))): //nolint:gosec // made-up load
	case <-ctx.Done():
	}
}

func (b behave) fails() bool { return b.errors > 0 && rand.Float64() < b.errors } //nolint:gosec // made-up load

// drive makes requests for ever: each of TRAFFIC's "URL@PERIOD" about once a PERIOD, in a trace of its own. Every tenth minute there is twice as much.
func (a *app) drive(ctx context.Context, traffic string) {
	for one := range strings.FieldsSeq(traffic) {
		url, every, ok := strings.Cut(one, "@")
		period, err := time.ParseDuration(every)
		if !ok || err != nil || period <= 0 {
			slog.Error("TRAFFIC: want URL@PERIOD", "got", one)
			continue
		}
		go func() {
			for {
				pause := time.Duration(float64(period) * rand.ExpFloat64()) //nolint:gosec // made-up load
				if time.Now().Minute()%10 == 0 {
					pause /= 2
				}
				select {
				case <-ctx.Done():
					return
				case <-time.After(min(pause, 10*period)):
				}
				root := a.spans.start(http.Header{}, "GET /", kindServer)
				call := a.call(ctx, root.header(), url)
				root.end(call.Error != "" || call.Status >= http.StatusInternalServerError)
			}
		}()
	}
}
