"""The rules service judges readings: it runs rule chains over them and says which device states follow."""
