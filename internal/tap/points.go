package tap

import (
	"fmt"
	"strconv"
	"strings"

	"penstock/pipeline"
)

// Point is a place at which packets are captured.
type Point struct {
	pipeline.TapPoint
	Name        string // as it is given: "lan:rx", "web/acl:before"
	Description string // what is there
}

// maxPoints is how many a capture has at most.
const maxPoints = 32

// Chain is what there is to be tapped of a chain.
type Chain struct {
	Name   string
	Stages []Stage
}

// Stage is one of a chain's.
type Stage struct {
	Kind   string
	Stream bool // it is shown bytes, not packets, by the boundary before it
}

// ParsePoints reads a list of points, separated by commas: PORT:rx, PORT:tx, CHAIN/STAGE:before, CHAIN/STAGE:after. A stage is named
// by its kind, or by its number in the chain, from 1. A stream stage stands for the boundary that it is behind. "" is every port, both
// ways.
func ParsePoints(text string, ports []pipeline.PortInfo, chains []Chain) (points []Point, err error) {
	if strings.TrimSpace(text) == "" {
		for _, p := range ports {
			points = append(points, portPoint(p, false), portPoint(p, true))
		}
		return points, nil
	}
	for word := range strings.SplitSeq(text, ",") {
		p, err := parsePoint(strings.TrimSpace(word), ports, chains)
		if err != nil {
			return nil, fmt.Errorf("--at: %w", err)
		}
		for _, o := range points {
			if o.TapPoint == p.TapPoint {
				return nil, fmt.Errorf("--at: %s and %s are the same place", o.Name, p.Name)
			}
		}
		points = append(points, p)
	}
	if len(points) > maxPoints {
		return nil, fmt.Errorf("--at: want at most %d points, got %d", maxPoints, len(points))
	}
	return points, nil
}

func portPoint(p pipeline.PortInfo, sent bool) Point {
	at := Point{Name: p.Name + ":rx", Description: "received by " + p.Interface}
	if sent {
		at = Point{Name: p.Name + ":tx", Description: "transmitted by " + p.Interface}
	}
	at.TapPoint = pipeline.TapPoint{Port: p.ID, Sent: sent}
	return at
}

func parsePoint(word string, ports []pipeline.PortInfo, chains []Chain) (Point, error) {
	place, where, _ := strings.Cut(word, ":")
	chain, stage, isStage := strings.Cut(place, "/")
	if !isStage {
		for _, p := range ports {
			if p.Name == place && (where == "rx" || where == "tx") {
				return portPoint(p, where == "tx"), nil
			}
		}
		return Point{}, unknown(word, ports, chains)
	}
	for _, c := range chains {
		if c.Name != chain || where != "before" && where != "after" {
			continue
		}
		i, err := findStage(c, stage)
		if err != nil {
			return Point{}, err
		}
		if i < 0 {
			break
		}
		at := Point{Name: word}
		at.TapPoint = pipeline.TapPoint{Port: pipeline.NoPort, Chain: c.Name, Stage: i, After: where == "after"}
		shown := i
		for shown > 0 && c.Stages[shown].Stream {
			shown--
		}
		at.Stage = shown
		at.Description = fmt.Sprintf("%s stage %d (%s) of chain %s", where, shown+1, c.Stages[shown].Kind, c.Name)
		if shown != i {
			at.Description += fmt.Sprintf(", behind which stage %d (%s) sees streams", i+1, c.Stages[i].Kind)
		}
		return at, nil
	}
	return Point{}, unknown(word, ports, chains)
}

// findStage returns the index of a stage, or -1.
func findStage(c Chain, name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil {
		if n < 1 || n > len(c.Stages) {
			return -1, nil
		}
		return n - 1, nil
	}
	found := -1
	for i, s := range c.Stages {
		if s.Kind != name {
			continue
		}
		if found >= 0 {
			return 0, fmt.Errorf("chain %q has several stages %s: want %s/%d or %s/%d", c.Name, name, c.Name, found+1, c.Name, i+1)
		}
		found = i
	}
	return found, nil
}

// unknown names every point that there is.
func unknown(word string, ports []pipeline.PortInfo, chains []Chain) error {
	var names []string
	for _, p := range ports {
		names = append(names, p.Name+":rx", p.Name+":tx")
	}
	for _, c := range chains {
		kinds := map[string]int{}
		for _, s := range c.Stages {
			kinds[s.Kind]++
		}
		for i, s := range c.Stages {
			name := s.Kind
			if kinds[name] > 1 {
				name = strconv.Itoa(i + 1)
			}
			names = append(names, c.Name+"/"+name+":before", c.Name+"/"+name+":after")
		}
	}
	return fmt.Errorf("there is no point %q; there are %s", word, strings.Join(names, ", "))
}
