package relay

import "time"

// stamps are the four of a clock exchange (RFC 5905, section 8): the agent sends at t1, the hub receives at t2 and answers at t3,
// the agent receives at t4. t1 and t4 are of the agent's clock, t2 and t3 of the hub's.
type stamps struct{ t1, t2, t3, t4 int64 }

// measure gives what must be added to the agent's clock to get the hub's, and the time spent on the way. The error of offset is at
// most half of roundTrip, which is never 0: that stands for "not measured".
func (s stamps) measure() (offset, roundTrip time.Duration) {
	return time.Duration((s.t2-s.t1)/2 + (s.t3-s.t4)/2), max(time.Duration((s.t4-s.t1)-(s.t3-s.t2)), 1)
}
