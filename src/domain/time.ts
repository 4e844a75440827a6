/** Time, randomness and ids are passed in, so that a decision can be replayed and a test can choose them. */

/** Milliseconds since the Unix epoch. All instants in the domain are of this type. */
export type Instant = number;
/** Milliseconds. */
export type Millis = number;

export interface Clock {
  now(): Instant;
}

export type RandomBytes = (size: number) => Uint8Array;
