module seeded

go 1.26
