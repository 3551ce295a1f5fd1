package ngsi

import (
	"errors"
	"fmt"
)

// Parking is what a ParkingSpot must tell beside what its distance sensor does.
type Parking struct {
	Site     string  // the OnStreetParking or OffStreetParking that it belongs to: a URN or a name
	Category string  // onStreet or offStreet
	Below    float64 // mm: a car stands there when something is closer than this
}

// siteType is the data model of the site.
func (p *Parking) siteType() string {
	if p.Category == "onStreet" {
		return "OnStreetParking"
	}
	return "OffStreetParking"
}

// check says what is wrong with p, beginning with the key of the configuration.
func (p *Parking) check() error {
	switch {
	case p == nil:
		return nil
	case p.Category != "onStreet" && p.Category != "offStreet":
		return fmt.Errorf("category: %q: want onStreet or offStreet", p.Category)
	case !(p.Below > 0):
		return errors.New("occupied_below: want the distance in mm below which a car stands there, such as 1500")
	case p.Site == "":
		return errors.New("site: there is none: write the parking that the spot belongs to, such as north-lot")
	}
	if err := checkID(entityID(p.siteType(), p.Site)); err != nil {
		return fmt.Errorf("site: %w", err)
	}
	return nil
}

// occupied is ParkingSpot.status.
func occupied(yes bool) string {
	if yes {
		return "occupied"
	}
	return "free"
}
