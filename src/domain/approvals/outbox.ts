import type { Instant, Millis } from '../time.ts';

/** One message to one endpoint, written with the act that it tells of. */
export interface Notification {
  tenant: string;
  notificationId: string;
  endpoint: string;
  type: string;
  payload: string;
  createdAt: Instant;
  /** This one included. */
  attempts: number;
}

export interface NotificationStore {
  /** Messages that are due, for one endpoint, kept from others until `claimFor` has passed. */
  claim(endpoint: string, now: Instant, claimFor: Millis, limit: number): Promise<Notification[]>;
  delivered(message: Notification, now: Instant): Promise<void>;
  failed(message: Notification, error: string, retryAt: Instant): Promise<void>;
  gaveUp(message: Notification, error: string, now: Instant): Promise<void>;
  /** Forgets what was delivered or given up, and written before then. */
  forget(before: Instant): Promise<number>;
}
