"""How far a network is from its teacher."""
