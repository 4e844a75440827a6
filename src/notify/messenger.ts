import type { Notification, NotificationStore } from '../domain/approvals/outbox.ts';
import type { Emit } from '../domain/telemetry.ts';
import type { Clock, Millis } from '../domain/time.ts';
import { post, type Endpoint } from './post.ts';
import { signedHeaders } from './sign.ts';

export interface MessengerOptions {
  clock: Clock;
  store: NotificationStore;
  endpoints: readonly Endpoint[];
  random: () => number;
  emit: Emit;
}

/** Of one endpoint in one round. */
const batch = 20;
const firstPause: Millis = 1_000;
const longestPause: Millis = 300_000;
/** A message older than this is no news. */
const giveUpAfter: Millis = 24 * 3_600_000;
const keepFor: Millis = 7 * 24 * 3_600_000;

/**
 * Sends what the outbox holds. At least once: a broker that dies after an endpoint took a message sends it again, with the
 * same webhook-id, by which the receiver knows it.
 */
export function createMessenger({ clock, store, endpoints, random, emit }: MessengerOptions) {
  return {
    /** One for each endpoint, to be run apart: one that is slow is waited for by nobody else. True when there may be more. */
    rounds: endpoints.map((endpoint) => () => round(endpoint)),
    forget: async (): Promise<void> => void (await store.forget(clock.now() - keepFor)),
  };

  async function round(endpoint: Endpoint): Promise<boolean> {
    const claimFor = endpoint.timeoutMs * batch + 10_000;
    const messages = await store.claim(endpoint.name, clock.now(), claimFor, batch);
    for (const [index, message] of messages.entries()) {
      if (await deliver(endpoint, message)) continue;
      // One that does not answer now will not answer the next one either; they come back with their claim's end.
      for (const other of messages.slice(index + 1)) await putBack(other);
      return false;
    }
    return messages.length === batch;
  }

  async function deliver(endpoint: Endpoint, message: Notification): Promise<boolean> {
    const now = clock.now();
    const { notificationId, attempts } = message;
    const fields = { endpoint: endpoint.name, notificationId, attempts };
    const answer = await attempt(endpoint, message, now);
    if (answer.outcome === 'delivered') {
      await store.delivered(message, clock.now());
      emit('notify.delivered', fields);
      return true;
    }
    const error = new Error(answer.error);
    if (answer.outcome === 'gone' || now - message.createdAt > giveUpAfter) {
      await store.gaveUp(message, answer.error, clock.now());
      emit('notify.gave_up', { ...fields, error });
      return answer.outcome === 'gone';
    }
    const retryInMs = Math.max(pauseAfter(attempts), Math.min(answer.retryAfterMs ?? 0, longestPause));
    await store.failed(message, answer.error, clock.now() + retryInMs);
    emit('notify.failed', { ...fields, retryInMs, error });
    return false;
  }

  async function attempt(endpoint: Endpoint, message: Notification, now: number) {
    let secrets: readonly Uint8Array[];
    try {
      secrets = endpoint.secrets();
    } catch {
      return { outcome: 'refused' as const, error: 'its signing secret cannot be read', retryAfterMs: undefined };
    }
    const { notificationId, payload } = message;
    return await post(endpoint, signedHeaders(notificationId, now, payload, secrets), payload);
  }

  async function putBack(message: Notification): Promise<void> {
    await store.failed(message, 'waits for one before it', clock.now() + pauseAfter(1));
  }

  /** Doubles, with a half of it random: endpoints that come back are not met by all at once. */
  function pauseAfter(attempts: number): Millis {
    const grown = Math.min(longestPause, firstPause * 2 ** Math.min(attempts - 1, 16));
    return Math.round(grown / 2 + (random() * grown) / 2);
  }
}
