/** What main, the load and the broker processes say to each other over their IPC channels. */

/** One RPC of an operation. `template` is the encoded request; identifiers of fixed length are written into it. */
export interface Step {
  path: string;
  template: Uint8Array;
  /** Where a fresh UUID goes. */
  requestIdAt?: number;
  /** Where the slot's current identifier goes: a task or a lease. */
  carryAt?: number;
  /** The answer's first identifier with this prefix becomes the slot's current one. */
  take?: 'tsk_' | 'lse_' | 'cal_';
}

export interface RpcWork {
  kind: 'rpc';
  port: number;
  /** Done one after the other; together they are one operation. */
  steps: Step[];
  /** One is used for every call; of several, each is used for one operation, and the slice ends when they run out. */
  tokens: string[];
  /** The identifier that each slot begins with; empty when the steps make their own. */
  carry: string[];
}

export interface SqlWork {
  kind: 'sql';
  url: string;
  /** Sent as one message, so that it is one transaction; `{{n}}` is a number that no other operation has. */
  text: string;
  /** Most connections; the operations in flight when unset. */
  connections?: number;
}

/** A GET of JSON by HTTP/1.1, each slot on a connection of its own that is kept. */
export interface HttpWork {
  kind: 'http';
  url: string;
  /** Sent with each call. One for each slot. */
  headers: Record<string, string>[];
  /** The field that an answer must have. */
  wanted: string;
}

export type Work = RpcWork | SqlWork | HttpWork;

export interface Slice {
  work: Work;
  /** Operations in flight: each slot starts its next one when its last one has ended. */
  concurrency: number;
  seconds: number;
}

export interface SliceResult {
  /** Milliseconds of each operation that succeeded. */
  latencies: Float64Array;
  errors: number;
  /** The first few, for the person who looks. */
  messages: string[];
  elapsedMs: number;
  /** CPU seconds of the load process. */
  cpu: number;
  /** The identifiers that the slots ended with. */
  carry: string[];
}

export interface Usage {
  /** CPU seconds since the process started. */
  cpu: number;
  rssBytes: number;
}
