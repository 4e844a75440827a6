import { LRUCache } from 'lru-cache';
import type { Millis } from '../../domain/time.ts';

/** How long what Vault makes at a path lives by itself, as its answers there say. */
export interface Lives {
  seen(server: string, path: string, granted: Millis): void;
  /** Undefined before the first answer. */
  of(server: string, path: string): Millis | undefined;
}

/** Vault's database engine lets a login outlive its lease by 5 s; this has some room for the clocks. */
const longer: Millis = 15_000;

/**
 * A login that Vault made and lost ends only by the date that it was given, which follows from the role at Vault and not from
 * our lease.
 */
export function createLives(): Lives {
  const lives = new LRUCache<string, Millis>({ max: 10_000 });
  return {
    seen: (server, path, granted) => void lives.set(`${server} ${path}`, granted + longer),
    of: (server, path) => lives.get(`${server} ${path}`),
  };
}
