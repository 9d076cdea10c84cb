package topology

import "time"

// LayOut lays the table out from nothing.
func LayOut(t *Table, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.current(now)
	t.layouts = newLayouts()
	t.layouts.learn(f.rows, f.clusters)
}
