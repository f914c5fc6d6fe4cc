// What is wrong with a picture, as one line for the person who chose it.

export class Refused extends Error {}
