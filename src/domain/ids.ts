import type { Instant, RandomBytes } from './time.ts';

export type IdPrefix = 'tsk' | 'lse' | 'apr' | 'msg' | 'rep' | 'dec' | 'cal' | 'sig' | 'lck' | 'evt';

/**
 * Makes `<prefix>_<uuidv7 hex>` (RFC 9562 §5.7): sortable by time, so that new rows land at the end of the index. With
 * `after` it is above that one, whatever the clocks of the two that make them: a child sorts behind its parent, and what
 * locks a tree in the order of ids locks it from the top.
 */
export type NewId = (prefix: IdPrefix, after?: string) => string;

export function idFactory(now: () => Instant, random: RandomBytes, mark?: InstallationMark): NewId {
  return (prefix, after) => {
    const bytes = Buffer.from(random(16));
    const least = after === undefined ? 0 : Number.parseInt(after.slice(prefix.length + 1, prefix.length + 13), 16) + 1;
    bytes.writeUIntBE(Math.max(now(), least), 0, 6);
    bytes[6] = 0x70 | (bytes[6]! & 0x0f);
    bytes[8] = 0x80 | (bytes[8]! & 0x3f);
    const hex = bytes.toString('hex');
    if (mark === undefined || prefix !== 'lse') return `${prefix}_${hex}`;
    return `lse_${hex.slice(0, -markLength)}${mark}`;
  };
}

/**
 * The last digits of every lease id of one installation (RFC 9562 §6.4 allows for a node's name among the random bits). A
 * target that names what it holds after the lease thereby tells whose it is, at no cost to issuing. The same for all
 * replicas, and after a restore of any database.
 */
export type InstallationMark = string;

export const markLength = 6;

export function bearsMark(leaseId: string, mark: InstallationMark): boolean {
  return leaseId.endsWith(mark);
}

/** When an id was made, by the clock of the replica that made it. */
export function idTime(id: string): Instant {
  return parseInt(id.slice(4, 16), 16);
}

const pattern = /^(tsk|lse|apr|msg|rep|dec|cal|sig|lck|evt)_[0-9a-f]{32}$/;

export function isId(prefix: IdPrefix, value: string): boolean {
  return pattern.test(value) && value.startsWith(`${prefix}_`);
}
