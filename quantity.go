package gateway

import "slices"

// Quantity is what a value is of. The list is closed and each quantity has one
// unit everywhere inside the gateway; the unit a data model wants (hPa, 0..1,
// kWh) is applied in ngsi/models.go and nowhere else.
type Quantity string

// Kind is the Go type of a quantity's values.
type Kind int

// The kinds: float64, bool and string.
const (
	Number Kind = iota
	Switch
	Text
)

func (k Kind) String() string { return [...]string{"number", "bool", "text"}[k] }

// The quantities.
const (
	Temperature       Quantity = "temperature"       // of the air, °C
	Humidity          Quantity = "humidity"          // relative, 0..100 %
	Pressure          Quantity = "pressure"          // of the air, absolute, Pa
	CO2               Quantity = "co2"               // ppm by volume
	PM1               Quantity = "pm1"               // particles up to 1 µm, µg/m³
	PM25              Quantity = "pm25"              // up to 2.5 µm, µg/m³
	PM4               Quantity = "pm4"               // up to 4 µm, µg/m³
	PM10              Quantity = "pm10"              // up to 10 µm, µg/m³
	TVOC              Quantity = "tvoc"              // ppb
	CO                Quantity = "co"                // carbon monoxide, mg/m³
	NO2               Quantity = "no2"               // nitrogen dioxide, µg/m³
	O3                Quantity = "o3"                // ozone, µg/m³
	SO2               Quantity = "so2"               // sulfur dioxide, µg/m³
	VOCIndex          Quantity = "vocIndex"          // Sensirion: 1..500, 100 is the average of the last day
	NOxIndex          Quantity = "noxIndex"          // Sensirion: 1..500, 1 is the average
	IAQ               Quantity = "iaq"               // Bosch index of air quality, 0..500
	AQIUBA            Quantity = "aqiUba"            // air quality class of the UBA, 1..5
	Illuminance       Quantity = "illuminance"       // lx
	UVIndex           Quantity = "uvIndex"           // 1
	SolarIrradiance   Quantity = "solarIrradiance"   // W/m²
	NoiseLevel        Quantity = "noiseLevel"        // A-weighted, dB
	NoiseLevelMax     Quantity = "noiseLevelMax"     // the loudest moment since the reading before, A-weighted, dB
	Occupancy         Quantity = "occupancy"         // someone moves here
	PeopleCount       Quantity = "peopleCount"       // people counted
	Contact           Quantity = "contact"           // open (true) or closed: a door, a window
	Button            Quantity = "button"            // pressed
	Voltage           Quantity = "voltage"           // V, direct
	Current           Quantity = "current"           // A, direct
	Power             Quantity = "power"             // W
	Energy            Quantity = "energy"            // Wh, a running total
	ACVoltage         Quantity = "acVoltage"         // of mains, V, root mean square
	ACCurrent         Quantity = "acCurrent"         // A, root mean square
	ACPower           Quantity = "acPower"           // active, W
	ACEnergy          Quantity = "acEnergy"          // active, consumed: Wh, a running total
	ACFrequency       Quantity = "acFrequency"       // of mains, Hz
	ACPowerFactor     Quantity = "acPowerFactor"     // -1..1
	Frequency         Quantity = "frequency"         // Hz
	Pulses            Quantity = "pulses"            // a running total of edges
	Distance          Quantity = "distance"          // mm
	Acceleration      Quantity = "acceleration"      // magnitude, m/s²
	SoilMoisture      Quantity = "soilMoisture"      // by volume, 0..100 %
	SoilTemperature   Quantity = "soilTemperature"   // °C
	SoilConductivity  Quantity = "soilConductivity"  // µS/cm
	WaterTemperature  Quantity = "waterTemperature"  // °C
	WaterFlow         Quantity = "waterFlow"         // L/min
	WaterVolume       Quantity = "waterVolume"       // L, a running total
	GasVolume         Quantity = "gasVolume"         // L, a running total
	WaterLevel        Quantity = "waterLevel"        // mm
	PH                Quantity = "ph"                // 0..14
	TDS               Quantity = "tds"               // mg/L
	WaterConductivity Quantity = "waterConductivity" // µS/cm
	Turbidity         Quantity = "turbidity"         // NTU
	ORP               Quantity = "orp"               // mV
	Precipitation     Quantity = "precipitation"     // mm since the reading before
	WindSpeed         Quantity = "windSpeed"         // m/s
	WindDirection     Quantity = "windDirection"     // where it comes from, 0..360°
	BatteryLevel      Quantity = "batteryLevel"      // 0..100 %; -1: it cannot be told just now
	RSSI              Quantity = "rssi"              // dBm
	ChipTemperature   Quantity = "chipTemperature"   // of a sensor's own silicon, °C
	CPUTemperature    Quantity = "cpuTemperature"    // of the computer, °C
)

var quantities = map[Quantity]struct {
	unit string
	kind Kind
}{
	Temperature: {"°C", Number}, Humidity: {"%", Number}, Pressure: {"Pa", Number}, CO2: {"ppm", Number},
	PM1: {"µg/m³", Number}, PM25: {"µg/m³", Number}, PM4: {"µg/m³", Number}, PM10: {"µg/m³", Number}, TVOC: {"ppb", Number},
	CO: {"mg/m³", Number}, NO2: {"µg/m³", Number}, O3: {"µg/m³", Number}, SO2: {"µg/m³", Number},
	VOCIndex: {"", Number}, NOxIndex: {"", Number}, IAQ: {"", Number}, AQIUBA: {"", Number},
	Illuminance: {"lx", Number}, UVIndex: {"", Number}, SolarIrradiance: {"W/m²", Number}, NoiseLevel: {"dB(A)", Number}, NoiseLevelMax: {"dB(A)", Number},
	Occupancy: {"", Switch}, Contact: {"", Switch}, Button: {"", Switch}, PeopleCount: {"", Number},
	Voltage: {"V", Number}, Current: {"A", Number}, Power: {"W", Number}, Energy: {"Wh", Number},
	ACVoltage: {"V", Number}, ACCurrent: {"A", Number}, ACPower: {"W", Number}, ACEnergy: {"Wh", Number},
	ACFrequency: {"Hz", Number}, ACPowerFactor: {"", Number},
	Frequency: {"Hz", Number}, Pulses: {"", Number}, Distance: {"mm", Number}, Acceleration: {"m/s²", Number},
	SoilMoisture: {"%", Number}, SoilTemperature: {"°C", Number}, SoilConductivity: {"µS/cm", Number},
	WaterTemperature: {"°C", Number}, WaterFlow: {"L/min", Number}, WaterVolume: {"L", Number}, GasVolume: {"L", Number}, WaterLevel: {"mm", Number},
	PH: {"", Number}, TDS: {"mg/L", Number}, Turbidity: {"NTU", Number}, ORP: {"mV", Number}, WaterConductivity: {"µS/cm", Number},
	Precipitation: {"mm", Number}, WindSpeed: {"m/s", Number}, WindDirection: {"°", Number},
	BatteryLevel: {"%", Number}, RSSI: {"dBm", Number}, ChipTemperature: {"°C", Number}, CPUTemperature: {"°C", Number},
}

// Known reports whether q is on the closed list.
func (q Quantity) Known() bool { _, ok := quantities[q]; return ok }

// Unit is the unit of q's values as people write it; empty where there is none.
func (q Quantity) Unit() string { return quantities[q].unit }

// Kind is the Go type of q's values.
func (q Quantity) Kind() Kind { return quantities[q].kind }

// Quantities lists all quantities in alphabetical order.
func Quantities() []Quantity {
	all := make([]Quantity, 0, len(quantities))
	for q := range quantities {
		all = append(all, q)
	}
	slices.Sort(all)
	return all
}
