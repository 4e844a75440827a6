import type { AuditKind } from './audit.ts';

/** What the broker tells its operators, besides what it writes into the audit: log line and counter per name. */
export type DomainEvent = AuditKind | 'settle.failed' | 'settle.irrevocable' | 'storage.error' | 'worker.failed';

export type EventFields = Readonly<Record<string, string | number | boolean | undefined>>;

/** The names' rows (level, line, counter) are in `observability/events.ts`; nobody invents one at a call site. */
export type Emit = (event: DomainEvent, fields: EventFields) => void;

/** Where the process may be killed in a fault test. The composition root passes a no-op. */
export type FaultPoint =
  | 'issue.pending-committed'
  | 'issue.credential-made'
  | 'issue.activated'
  | 'close.committed'
  | 'settle.claimed'
  | 'settle.revoked'
  | 'settle.recorded';

export type Reached = (point: FaultPoint) => void;
