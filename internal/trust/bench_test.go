package trust

import "testing"

func BenchmarkNext1000(b *testing.B) {
	s, second := settled(b, 1000)
	s.want.Root = &second.root
	s.until(b, AddingRoot, nil)
	s.obey("c0999") // one is missing, so that nothing moves
	for b.Loop() {
		if step := Next(s.r, s.want, s.fleet, s.now); step.Rotation.Phase != AddingRoot {
			b.Fatal("it moved")
		}
	}
}

func BenchmarkPlan1000(b *testing.B) {
	s, second := settled(b, 1000)
	s.want.Root = &second.root
	s.until(b, AddingRoot, nil)
	s.obey()
	for b.Loop() {
		if p := Plan(s.r, s.want, s.fleet, s.now); failures(p) > 0 {
			b.Fatal("a pair fails")
		}
	}
}
