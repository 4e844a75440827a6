import { suggestion } from '../config/suggest.ts';
import { fieldsOf } from './activation.ts';

/** For a condition or list that nobody defined. */
export function definitionHint(word: string, names: Iterable<string>, what: 'conditions' | 'lists'): string {
  const all = [...names];
  return all.length === 0 ? `define it in a Definitions document, under spec.${what}` : suggestion(word, all, what);
}

/** What is wrong with a condition, and where in its text. */
export interface ConditionFault {
  /** From 0. */
  offset: number;
  message: string;
  hint: string;
}

/** Fields of the variables whose fields the documents define. */
export interface DefinedFields {
  shape: Readonly<Record<string, string>>;
  lists: Readonly<Record<string, readonly string[]>>;
}

export function unknownField(owner: string, word: string, offset: number, defined?: DefinedFields): ConditionFault {
  if (owner === 'args') {
    const names = Object.keys(defined?.shape ?? {});
    const hint =
      names.length === 0
        ? "the rule's tools declare no arguments (spec.tiers.<tier>.arguments)"
        : suggestion(word, names, 'arguments');
    return {
      offset,
      message: `none of the rule's tools takes an argument "${word}"`,
      hint,
    };
  }
  if (owner === 'lists') {
    const hint = definitionHint(word, Object.keys(defined?.lists ?? {}), 'lists');
    return { offset, message: `there is no list "${word}"`, hint };
  }
  const message = `${owner === '' ? 'there' : owner} has no field "${word}"`;
  if (owner === 'task' && word === 'intent') {
    return { offset, message, hint: 'free text never decides; put what decides into task.context' };
  }
  const hint = suggestion(word, Object.keys(fieldsOf(owner) ?? {}), 'fields');
  return { offset, message, hint };
}
